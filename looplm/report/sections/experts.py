"""Which experts the routers choose."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from looplm.config.schema import MoE
from looplm.metrics.routers import relative_load
from looplm.report import curves, pieces
from looplm.report.colours import INK
from looplm.report.curves import Panel
from looplm.report.found import Found
from looplm.report.picture import HEIGHT, Hints, Picture, picture

PANELS = (
    Panel("moe/load_max", "Most loaded expert", "of the mean"),
    Panel("moe/load_min", "Least loaded expert", "of the mean"),
    Panel("moe/dead", "Experts without a token"),
    Panel("attention/load_max", "Most loaded expert of attentions", "of the mean"),
    Panel("attention/load_min", "Least loaded expert of attentions", "of the mean"),
    Panel("attention/dead", "Experts of attentions without a token"),
    Panel("moe/dropped", "Choices dropped"),
)
FAULTS = {"moe/dead", "attention/dead", "moe/dropped"}
"""Not drawn where there are none."""


def experts(found: Found) -> str:
    """Return the section; nothing for a model without experts."""
    history, model = found.history, found.run.model
    _, dead = history.column("moe/dead")
    if not len(dead):
        return ""
    loops = sorted(history.numbered("moe/load_max_loop_"))
    columns = ("moe/load_max", "moe/load_min", "moe/changed")
    rows = [
        (name, *(pieces.number(history.at_the_end(f"{column}{suffix}"), 2) for column in columns))
        for name, suffix in (("all", ""), *((str(loop), f"_loop_{loop}") for loop in loops))
    ]
    caption = "Choices of the most and the least loaded expert of a step, over the mean (1 is even), of all layers; "
    caption += "and the share of a token's experts that the loop before had not chosen. At the end, smoothed."
    numbers = pieces.table(("loop", "most loaded", "least loaded", "changed"), rows, caption=caption)
    told = f"Experts without a token in any loop of a step: {dead[-1]:.0f} at the end, {dead.max():.0f} at most."
    panels = [panel for panel in PANELS if panel.name not in FAULTS or history.column(panel.name)[1].any()]
    drawn = pieces.grid(*curves.figures(history, panels))
    moe = model.feed_forward_of("block")
    shown = [row for row in found.loads if row["loops"] and "moe/load/block" in row]
    if isinstance(moe, MoE) and shown:
        layers = [layer for layer in range(model.block_layers) if layer not in moe.dense_layers]
        drawing = _every_expert(shown[-1]["moe/load/block"], shown[-1]["loops"], layers, shown[-1]["step"])
        numbers = pieces.pair(drawing, numbers)
    return pieces.section("Experts", pieces.paragraph(told), drawn, numbers)


def _every_expert(load_TLE: np.ndarray, loops: Sequence[int], layers: Sequence[int], step: int) -> str:
    relative_LTE = np.moveaxis(relative_load(load_TLE), 0, 1)
    rows = [
        [f"layer {layer}, loop {loop}", *(pieces.number(float(value), 2) for value in relative_LTE[at, visit])]
        for at, layer in enumerate(layers)
        for visit, loop in enumerate(loops)
    ]
    headers = ["", *(str(expert) for expert in range(relative_LTE.shape[2]))]
    shown = _loads(relative_LTE, loops, layers)
    return pieces.figure(
        shown,
        f"Every expert of the block at step {step:,}",
        numbers=pieces.numbers(headers, rows, caption="Load / mean."),
    )


def _loads(relative_LTE: np.ndarray, loops: Sequence[int], layers: Sequence[int]) -> Picture:
    """Return the load of every expert over the mean of its visit: a row for each loop of each layer."""
    L, T, E = relative_LTE.shape
    rows = relative_LTE.reshape(-1, E)

    def draw(figure: Figure, _: Hints) -> None:
        axes = figure.subplots()
        image = axes.imshow(rows, aspect="auto", vmin=0.0, vmax=max(2.0, np.nanmax(rows)), interpolation="nearest")
        figure.colorbar(image, ax=axes, label="load / mean", pad=0.02)
        axes.grid(visible=False)
        if L == 1:
            axes.set_yticks(range(0, T, -(-T // 16)), [f"{loop}" for loop in loops[:: -(-T // 16)]])
        else:
            axes.set_yticks(range(0, L * T, T), [f"{layer}" for layer in layers])
        for layer in range(1, L):
            axes.axhline(layer * T - 0.5, color=INK, linewidth=0.8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="expert", ylabel="loop" if L == 1 else f"layer, and in it loops {loops[0]} to {loops[-1]}")

    layer, loop, expert = (int(i) for i in np.unravel_index(np.nanargmax(relative_LTE), relative_LTE.shape))
    alt = f"Load of {E} experts in {T} loops of {L} layers, over the mean. Most: {np.nanmax(rows):.2f}, expert {expert}"
    alt += f" of layer {layers[layer]} in loop {loops[loop]}; least: {np.nanmin(rows):.2f}."
    return picture(draw, alt, height=max(HEIGHT, 60 + 9 * L * T))
