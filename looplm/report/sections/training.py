"""What training measured step by step: losses, and what the optimizer did."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from looplm.report import curves, pieces
from looplm.report.colours import ACCENT, MAIN, SOFT, of_loop
from looplm.report.curves import Panel
from looplm.report.found import Found
from looplm.report.history import History, smooth
from looplm.report.picture import Hints, picture

OPTIMIZER = (Panel("optim/learning_rate", "Learning rate"), Panel("train/grad_norm", "Gradient norm", logarithmic=True))
NATS = "nats per token"


def training(found: Found) -> str:
    """Return the section."""
    history = found.history
    shown = [_loss(history, found.run.loop.num_loops), _loop_losses(history), *curves.figures(history, OPTIMIZER)]
    missing = "" if shown[0] else pieces.missing("The training loss is missing", "`looplm train` measures it")
    return pieces.section("Training", missing, pieces.grid(*shown))


def _loss(history: History, depth: int) -> str:
    """Return the loss of every step, raw and smoothed, and the held-out loss at `depth` where it was measured."""
    steps, loss = history.column("train/loss")
    if not len(loss):
        return ""
    smoothed = smooth(loss)
    held_out_steps, held_out = history.column(f"eval/loss_depth_{depth}")

    def draw(figure: Figure, hints: Hints) -> None:
        axes = figure.subplots()
        axes.plot(steps, loss, color=MAIN, alpha=0.35, linewidth=0.7, label="every step")
        axes.plot(steps, smoothed, color=MAIN, marker=curves.marker(loss), label="smoothed")
        if len(held_out):
            name = f"held out, depth {depth}"
            (dots,) = axes.plot(held_out_steps, held_out, "o-", color=ACCENT, markersize=4, label=name)
            hints.add(dots, [f"step {x:.0f}, {name}: {y:.4f}" for x, y in zip(held_out_steps, held_out, strict=True)])
        curves.over_steps(axes, NATS)
        curves.legend(figure, axes)

    alt = f"Training loss against step, smoothed: {curves.course(steps, smoothed, 'nats')}."
    columns, headers = [(steps, loss), (steps, smoothed)], ["step", "loss", "smoothed"]
    if len(held_out):
        alt += f" Held-out loss at depth {depth}: {curves.course(held_out_steps, held_out, 'nats')}."
        columns.append((held_out_steps, held_out))
        headers.append("held out")
    table = pieces.numbers(headers, curves.rows(columns), caption=curves.thinned(len(loss)))
    return pieces.figure(picture(draw, alt), "Training loss", numbers=table)


def _loop_losses(history: History) -> str:
    """Return what every loop lacks of the last one, of the same tokens, smoothed."""
    names = history.numbered("train/loss_loop_")
    if len(names) < 2:
        return ""
    last = max(names)
    steps, losses = history.column(names[last])
    of_last = dict(zip(steps.tolist(), losses.tolist(), strict=True))
    columns = {}
    for loop, name in names.items():
        both = [
            (step, loss - of_last[step]) for step, loss in zip(*history.column(name), strict=True) if step in of_last
        ]
        if both and loop != last:
            columns[loop] = np.array([step for step, _ in both]), smooth(np.array([loss for _, loss in both]))
    if not columns:
        return ""

    def draw(figure: Figure, _: Hints) -> None:
        axes = figure.subplots()
        axes.axhline(0.0, color=SOFT, linewidth=0.9)
        for index, (loop, (steps, loss)) in enumerate(columns.items()):
            style: dict[str, Any] = {"color": of_loop(index, len(columns) + 1), "linewidth": 1.3}
            axes.plot(steps, loss, label=f"{loop}", marker=curves.marker(loss), **style)
        curves.over_steps(axes, NATS)
        curves.legend(figure, axes, "after loop")

    ends = ", ".join(f"{loss[-1]:+.4f} after loop {loop}" for loop, (_, loss) in columns.items())
    headers = ("step", *(f"loop {loop}" for loop in columns))
    longest = max(len(steps) for steps, _ in columns.values())
    table = pieces.numbers(headers, curves.rows(list(columns.values())), caption=curves.thinned(longest))
    alt = f"Training loss after each loop minus that after loop {last} against step, smoothed; at the end {ends} nats."
    told = f"Minus the loss after loop {last} of the same tokens, smoothed."
    return pieces.figure(picture(draw, alt), "Training loss after each loop", told, table)
