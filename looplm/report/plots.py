"""The pictures of the report, each from the metrics or from a depth sweep; None when its numbers are missing."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from looplm.metrics.routers import relative_load
from looplm.metrics.sweep import Sweep
from looplm.report.history import History, smooth
from looplm.report.picture import Picture, Theme, picture


def training_loss(history: History, depth: int) -> Picture | None:
    """The loss of every step, raw and smoothed, and the held-out loss at `depth` where it was measured."""
    steps, loss = history.column("train/loss")
    if not len(loss):
        return None
    smoothed = smooth(loss)
    held_out_steps, held_out = history.column(f"eval/loss_depth_{depth}")

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        axes.plot(steps, loss, color=theme.main, alpha=0.3, linewidth=0.8, label="every step")
        axes.plot(steps, smoothed, color=theme.main, marker=_marker(loss), label="smoothed")
        if len(held_out):
            axes.plot(
                held_out_steps, held_out, "o-", color=theme.accent, markersize=4, label=f"held out, depth {depth}"
            )
        axes.set(xlabel="step", ylabel="loss (nats per token)")
        axes.legend()

    alt = f"Training loss against step, smoothed: {_course(steps, smoothed, 'nats')}."
    if len(held_out):
        alt += f" Held-out loss at depth {depth}: {_course(held_out_steps, held_out, 'nats')}."
    return picture(draw, alt)


def loop_losses(history: History) -> Picture | None:
    """The smoothed training loss after every loop."""
    columns = {loop: history.column(name) for loop, name in history.numbered("train/loss_loop_").items()}
    columns = {loop: (steps, smooth(loss)) for loop, (steps, loss) in columns.items() if len(loss)}
    if not columns:
        return None

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        for index, (loop, (steps, loss)) in enumerate(columns.items()):
            colour = theme.of_depth(index, len(columns))
            axes.plot(steps, loss, color=colour, marker=_marker(loss), label=f"loop {loop}")
        axes.set(xlabel="step", ylabel="loss (nats per token)")
        axes.legend(ncols=1 + (len(columns) - 1) // 6)

    last = ", ".join(f"{loss[-1]:.3f} after loop {loop}" for loop, (_, loss) in columns.items())
    return picture(draw, f"Training loss after each loop against step, smoothed; at the end {last} nats.")


def loss_by_depth(sweep: Sweep) -> Picture:
    """The held-out loss at every depth with its interval, and the trained depth."""
    rows = [row for row in sweep.rows if np.isfinite(row.loss)]
    depths, loss = [row.depth for row in rows], np.array([row.loss for row in rows])
    # An interval of the bootstrap may leave out the mean by rounding; matplotlib takes no negative lengths.
    bars = np.clip([loss - [row.low for row in rows], [row.high for row in rows] - loss], 0.0, None)

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        axes.axvline(sweep.trained_depth, color=theme.accent, linestyle="--", linewidth=1.2, label="trained depth")
        axes.errorbar(depths, loss, yerr=bars, fmt="o-", color=theme.main, markersize=5, capsize=4, label="held out")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="depth (loops)", ylabel="loss (nats per token)")
        axes.legend()

    values = ", ".join(f"{row.loss:.3f} at depth {row.depth}" for row in rows)
    return picture(draw, f"Held-out loss in nats by depth, trained depth {sweep.trained_depth}: {values}.")


def exits(shares: Sequence[float]) -> Picture:
    """The share of tokens that exit at each loop."""
    percent = [100.0 * share for share in shares]

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        bars = axes.bar(range(1, len(percent) + 1), percent, color=theme.main)
        axes.bar_label(bars, fmt="%.0f %%" if len(percent) <= 8 else "%.0f", padding=2)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(visible=False, axis="x")
        axes.margins(y=0.12)
        axes.set(xlabel="exit after loop", ylabel="tokens (%)")

    values = ", ".join(f"{value:.1f} % at loop {loop}" for loop, value in enumerate(percent, start=1))
    return picture(draw, f"Share of tokens by the loop they exit at: {values}.")


@dataclass(frozen=True)
class Panel:
    """One metric in a stack of pictures that share the step axis."""

    name: str
    label: str
    logarithmic: bool = False
    from_zero: bool = False
    """Large counts: the axis starts at zero and is labelled in k and M."""


OPTIMIZER = (Panel("optim/learning_rate", "learning rate"), Panel("train/grad_norm", "gradient norm", logarithmic=True))
THROUGHPUT = (Panel("perf/tokens_per_s", "tokens per second", from_zero=True),)
LOOPS = (
    Panel("gate/expected_depth", "expected depth"),
    Panel("loop/residual_rel", "relative residual", logarithmic=True),
    Panel("loop/state_norm", "state norm"),
    Panel("loop/update_cosine", "cosine of updates"),
)
EXPERTS = (
    Panel("moe/load_max", "most loaded expert / mean"),
    Panel("moe/load_min", "least loaded expert / mean"),
    Panel("moe/dead", "experts without a token"),
    Panel("attention/load_max", "most loaded expert of attentions / mean"),
    Panel("attention/load_min", "least loaded expert of attentions / mean"),
    Panel("attention/dead", "experts of attentions without a token"),
    Panel("moe/dropped", "choices dropped"),
)


def loads(load_TLE: np.ndarray, loops: Sequence[int], layers: Sequence[int]) -> Picture:
    """The load of every expert over the mean of its visit: a row for each loop of each layer; numbers of both."""
    relative_LTE = np.moveaxis(relative_load(load_TLE), 0, 1)
    L, T, E = relative_LTE.shape
    rows = relative_LTE.reshape(-1, E)

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        image = axes.imshow(rows, aspect="auto", vmin=0.0, vmax=max(2.0, np.nanmax(rows)), interpolation="nearest")
        figure.colorbar(image, ax=axes, label="load / mean")
        axes.grid(visible=False)
        axes.set_yticks(range(0, L * T, T), [f"layer {layer}, loop {loops[0]}" for layer in layers])
        for layer in range(1, L):
            axes.axhline(layer * T - 0.5, color=theme.ink, linewidth=0.8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="expert")

    layer, loop, expert = (int(i) for i in np.unravel_index(np.nanargmax(relative_LTE), relative_LTE.shape))
    alt = f"Load of {E} experts in {T} loops of {L} layers, over the mean. Most: {np.nanmax(rows):.2f}, expert {expert}"
    alt += f" of layer {layers[layer]} in loop {loops[loop]}; least: {np.nanmin(rows):.2f}."
    return picture(draw, alt, height_inches=1.2 + 0.16 * max(L * T, 12))


def stack(history: History, panels: Sequence[Panel]) -> Picture | None:
    """The panels whose metric was measured, one above the other."""
    found = [(panel, *history.column(panel.name)) for panel in panels]
    found = [(panel, steps, values) for panel, steps, values in found if len(values)]
    if not found:
        return None

    def draw(figure: Figure, theme: Theme) -> None:
        grid = figure.subplots(len(found), 1, sharex=True, squeeze=False)
        for axes, (panel, steps, values) in zip(grid[:, 0], found, strict=True):
            axes.plot(steps, values, color=theme.main, linewidth=1.2, marker=_marker(values))
            axes.set_ylabel(panel.label)
            if panel.logarithmic and values.max() > 30 * values.min() > 0:
                axes.set_yscale("log")
            elif panel.from_zero:
                axes.yaxis.set_major_formatter(EngFormatter())
                axes.set_ylim(bottom=0.0)
            else:
                axes.ticklabel_format(axis="y", scilimits=(-2, 4))
        grid[-1, 0].set_xlabel("step")

    texts = [f"{panel.label} against step: {_course(steps, values)}" for panel, steps, values in found]
    alt = "; ".join(texts) + "."
    return picture(draw, alt[0].upper() + alt[1:], height_inches=1.2 + 1.7 * len(found))


def _course(steps: np.ndarray, values: np.ndarray, unit: str = "") -> str:
    last = f"{values[-1]:.4g} {unit}".rstrip()
    return f"{values[0]:.4g} at step {steps[0]:.0f}, {last} at step {steps[-1]:.0f}"


def _marker(values: np.ndarray) -> str | None:
    return "o" if len(values) == 1 else None  # a line of one point would be invisible
