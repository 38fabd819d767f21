"""Which layers of a model go where: three ranges, and a choice among those of the block."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from looplm.config.schema import Place
from looplm.errors import UserError

Select = Literal["given", "even", "average", "angular"]
Origin = tuple[int, ...]
"""The layers of the original, counted from 0, that a layer is the mean of; one as a rule."""
RANGE = re.compile(r"(\d{1,6}):(\d{1,6})")


@dataclass(frozen=True)
class Ranges:
    """Layers of the original, counted from 0."""

    prelude: range
    block: range
    coda: range

    @classmethod
    def of(cls, num_layers: int, *, prelude: str | None, block: str, coda: str | None) -> "Ranges":
        """Reads `START:STOP`, the end not included; None for no layer. Raises UserError for ranges that are malformed,
        empty, beyond the model's layers, or that do not follow one another."""
        found = {
            name: _range(f"--{name}", text, num_layers) if text is not None else None
            for name, text in (("prelude", prelude), ("block", block), ("coda", coda))
        }
        before: tuple[str, range] | None = None
        for name, layers in found.items():
            if layers is None:
                continue
            if before is not None and layers.start < before[1].stop:
                told = f"--{before[0]} {before[1].start}:{before[1].stop}"
                raise UserError(
                    f"--{name} {layers.start}:{layers.stop} begins before {told} ends; "
                    f"the ranges follow one another without overlap, so begin at {before[1].stop} or later"
                )
            before = name, layers
        return cls(*(layers or range(0) for layers in found.values()))


@dataclass(frozen=True)
class Cut:
    """What every layer of the looped model is made of."""

    prelude: tuple[Origin, ...]
    block: tuple[Origin, ...]
    coda: tuple[Origin, ...]

    def of(self, place: Place) -> tuple[Origin, ...]:
        return {"prelude": self.prelude, "block": self.block, "coda": self.coda}[place]

    @property
    def kept(self) -> tuple[Origin, ...]:
        """All layers in order: the stack that one loop is."""
        return self.prelude + self.block + self.coda

    def __str__(self) -> str:
        places = (("prelude", self.prelude), ("block", self.block), ("coda", self.coda))
        return ", ".join(f"{name} {_told(origins)}" for name, origins in places if origins)


def num_chosen(ranges: Ranges, select: str, num_layers: int | None, loops: int) -> int:
    """How many layers the block is to have.

    Args:
        num_layers: as it was asked for; None for all of the range, or with a choice for so many that `loops` loops are
            as deep as the range.

    Raises UserError for a choice that is not known, and for a number that does not fit.
    """
    count = len(ranges.block)
    if select not in get_args(Select):
        raise UserError(f"--select {select} is not known; use one of {', '.join(get_args(Select))}")
    if select == "given":
        if num_layers not in (None, count):
            raise UserError(
                f"--layers {num_layers} is not the {count} layers of --block, all of which --select given takes; "
                "leave it out, or use --select even, average or angular"
            )
        return count
    if num_layers is None:
        if count % loops:
            raise UserError(
                f"--select {select}: {loops} loops do not divide the {count} layers of --block; give --layers, or "
                "another --loops"
            )
        num_layers = count // loops
    if not 1 <= num_layers <= count:
        raise UserError(f"--layers {num_layers} is not among the {count} layers of --block; use 1 to {count}")
    if select == "average" and count % num_layers:
        raise UserError(
            f"--select average: --layers {num_layers} does not divide the {count} layers of --block into cycles; "
            f"use one of {[n for n in range(1, count + 1) if count % n == 0]}"
        )
    return num_layers


def cut(ranges: Ranges, block: Sequence[Origin]) -> Cut:
    """The cut with a block of these layers."""
    alone = [tuple((i,) for i in layers) for layers in (ranges.prelude, ranges.coda)]
    return Cut(alone[0], tuple(block), alone[1])


def evenly(layers: range, count: int) -> list[Origin]:
    """So many layers at even distances, the first and the last among them; one layer is the middle one."""
    if count == 1:
        return [(layers[len(layers) // 2],)]
    return [(layers[round(i * (len(layers) - 1) / (count - 1))],) for i in range(count)]


def averaged(layers: range, count: int) -> list[Origin]:
    """Layer j is the mean of the layers j, j + count, j + 2 count, ...: of those that it stands for, loop by loop."""
    return [tuple(layers[j::count]) for j in range(count)]


def _range(option: str, text: str, num_layers: int) -> range:
    match = RANGE.fullmatch(text)
    if match is None:
        raise UserError(f"{option} {text!r} is no range of layers; give START:STOP, such as 4:8 for layers 4 to 7")
    layers = range(int(match[1]), int(match[2]))
    if not layers:
        raise UserError(f"{option} {text} holds no layer; the end is not included, so give one above the start")
    if layers.stop > num_layers:
        raise UserError(f"{option} {text} goes beyond the model's {num_layers} layers; end at {num_layers} or before")
    return layers


def _told(origins: Sequence[Origin]) -> str:
    alone = [origin[0] for origin in origins]
    if all(len(origin) == 1 for origin in origins) and alone == [*range(alone[0], alone[0] + len(alone))]:
        return f"{alone[0]}:{alone[0] + len(alone)}"
    return "[" + ", ".join("mean of " + " ".join(map(str, o)) if len(o) > 1 else str(o[0]) for o in origins) + "]"
