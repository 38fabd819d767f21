"""How the arrays of a checkpoint differ from those that a run wants, leaf by leaf."""

import difflib
from collections.abc import Mapping
from typing import Any, NamedTuple

from looplm.checkpoint.digest import named_leaves

SHOWN = 12


class Kind(NamedTuple):
    """What an array is, whatever its values."""

    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


def kinds(tree: Any) -> dict[str, Kind]:
    """Of the leaves of a tree of arrays or abstract ones, by name; `...` is left out."""
    return {name: Kind(leaf.shape, str(leaf.dtype)) for name, leaf in named_leaves(tree).items()}


def differences(stored: Mapping[str, Kind], wanted: Mapping[str, Kind]) -> str:
    """What does not fit, with the nearest name of a leaf that is missing; empty when everything does."""
    found = []
    left_over = [name for name in stored if name not in wanted]
    for name, kind in wanted.items():
        if name not in stored:
            found.append(f"{name} {kind} is not stored{_nearest(name, kind, stored, left_over)}")
        elif stored[name] != kind:
            found.append(f"{name} is {stored[name]} there and {kind} here")
    found += [f"{name} {stored[name]} is not wanted" for name in left_over]
    more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return "; ".join(found[:SHOWN]) + more


def _nearest(name: str, kind: Kind, stored: Mapping[str, Kind], left_over: list[str]) -> str:
    close = difflib.get_close_matches(name, left_over or list(stored), n=1, cutoff=0.5)
    return f" (nearest: {close[0]} {stored[close[0]]})" if close else ""
