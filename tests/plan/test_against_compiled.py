"""Estimates from the traced step against what the TPU compiler said of the same meshes, in docs/scaling.md."""

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from looplm.config.load import load_config
from looplm.config.schema import Run
from looplm.hardware import GIB
from looplm.plan.chips import Chips, parse_chips
from looplm.plan.estimate import MARGIN, Estimate, Recipe, estimate
from looplm.plan.traced import Form, Traced
from looplm.sharding.rules import MESH_AXES
from looplm.train.machine import for_machine

TABLES = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text()
GB = 1e9
NARROW = 1.75
"""Where parts are narrower than a tile the compiler all-reduces most gradients, which sends almost twice as much."""


class Row(NamedTuple):
    """One of the tables, and what has to be known beside it."""

    starts: str
    """How the row begins."""
    settings: tuple[str, ...] = ()
    """Of its command that its recipe does not hold."""
    once: float = 1.0
    """How many times the bytes of the estimate are sent once a step."""


FEW = [
    Row("| ouro:1.4b, v5e:8x8 |"),
    Row("| looped_moe:1b, v5p:4x4x4 (2026-11-29) |"),
]
MANY = [
    Row(
        "| parcae:1.3b, v5p:4x4x4, 32,768 |",
        ("mesh.data=4", "mesh.fsdp=4", "mesh.context=4", "data.sequence_length=32768", "loop.remat=layer"),
    ),
    Row("| ouro:1.4b, v5p:4x4x4 |"),
    Row("| ouro:1.4b, v6e:8x8 |"),
    Row("| ouro:1.4b, tpu7x:4x4x4 (128 devices) |"),
    Row("| huginn:3.5b, v5e:8x8 |", once=NARROW),
    Row("| huginn:3.5b, v5p:4x4x4 |", once=NARROW),
    Row("| huginn:3.5b, tpu7x:4x4x4 (128 devices) |", once=NARROW),
    Row("| parcae:1.3b, v5p:4x4x4 |", ("loop.remat=layer",)),
    Row(
        "| ouro:1.4b, v5p:4x4x4, 32,768 |",
        ("mesh.fsdp=16", "mesh.context=4", "data.sequence_length=32768", "data.accumulation_steps=16"),
    ),
    Row(
        "| huginn:3.5b, v5p:4x4x4, 32,768 |",
        ("mesh.fsdp=32", "mesh.context=2", "data.sequence_length=32768", "data.accumulation_steps=16"),
        once=NARROW,
    ),
]


def cells(row: Row) -> list[str]:
    """The row of the docs."""
    (line,) = [line for line in TABLES.splitlines() if line.startswith(row.starts)]
    return [cell.strip() for cell in line.strip("|").split("|")]


def numbers(text: str) -> list[float]:
    return [float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*\.?\d*", text)]


def planned(row: Row) -> tuple[Run, Chips, Estimate]:
    """What is estimated of the row's mesh."""
    name, words = (part.strip() for part in row.starts.strip("| ").split(" (")[0].split(",")[:2])
    chips = parse_chips(words)
    given = [setting.partition("=")[0] for setting in row.settings]
    run = for_machine(load_config(name, row.settings), chips.devices, given)
    sizes = {axis: getattr(run.mesh, axis) for axis in MESH_AXES}
    filled = chips.num_devices
    for size in sizes.values():
        filled //= max(size, 1)
    mesh = {axis: filled if size == -1 else size for axis, size in sizes.items()}
    gather = (
        next(cell for cell in cells(row) if cell in ("once", "per_layer")) if "32,768" not in row.starts else "once"
    )
    form = Form(mesh["expert"], mesh["context"], mesh["tensor"], run.loop.remat, gather, "gathered")
    sequences = run.data.batch_tokens // run.data.sequence_length
    shards = mesh["replica"] * mesh["data"] * mesh["fsdp"] * mesh["expert"]
    steps = run.data.accumulation_steps
    recipe = Recipe(mesh, form, steps, sequences // steps // shards)
    return run, chips, estimate(run, chips, Traced(run, chips, form), recipe)


@pytest.mark.parametrize("row", [*FEW, *(pytest.param(row, marks=pytest.mark.slow) for row in MANY)])
def test_an_estimate_is_near_what_the_compiler_said(row: Row) -> None:
    _, _, one = planned(row)
    found = cells(row)
    (memory,) = [cell for cell in found if re.match(r"[\d.]+ \+ [\d.]+ = ", cell)]
    state, rest = numbers(memory)[:2]
    # A TPU pads heads and columns to whole tiles.
    assert one.state_bytes / GIB == pytest.approx(state, rel=0.01 if "huginn" not in row.starts else 0.1)
    assert one.temporary_bytes / GIB == pytest.approx(rest, rel=MARGIN)
    (times,) = [cell for cell in found if cell.count(" / ") == 2]
    products, traffic, links = numbers(times)
    assert one.time.compute_s == pytest.approx(products, rel=0.02)
    if "*" not in times:  # with it, an upper bound by an older way of counting
        assert one.time.memory_s == pytest.approx(traffic, rel=0.35)
    once, in_loops = (numbers(cell)[0] for cell in found[-2:])
    if links > 0.1 and in_loops > 100:
        assert one.time.links_in_loops_s + one.time.links_once_s == pytest.approx(links, rel=0.3)
    assert one.sent_once_bytes * row.once / GB == pytest.approx(once, rel=0.1 if row.once == 1 else 0.2)
