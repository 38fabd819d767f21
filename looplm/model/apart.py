"""Parameters of a stack of layers, each layer by itself.

A CPU copies a layer out of a stack whenever it visits it; a token that is written reads every weight once a loop, so
the copies would cost more than the products.
"""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Apart:
    """A parameter of several layers, as an array for each."""

    layers: tuple[jax.Array, ...]

    @classmethod
    def of(cls, stacked: jax.Array) -> "Apart":
        """Take a stacked parameter apart. On a CPU layers share the memory of the stack, if it is on one device and
        they begin where an array may; elsewhere, and while a program is traced, they are cut out of it."""
        if isinstance(stacked, jax.core.Tracer) or len(stacked.devices()) > 1:
            return cls(tuple(stacked[i] for i in range(len(stacked))))
        (device,) = stacked.devices()
        return cls(tuple(jax.device_put(layer, device, may_alias=True) for layer in np.asarray(stacked)))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the stacked parameter."""
        return (len(self.layers), *self.layers[0].shape)

    def __getitem__(self, rows: Any) -> Any:
        """Return the parameter of a layer, or of several, as from the stacked one."""
        return Apart(self.layers[rows]) if isinstance(rows, slice) else self.layers[rows]


def is_apart(leaf: Any) -> bool:
    """Whether it is a parameter that was taken apart; for `is_leaf` of `jax.tree.map`."""
    return isinstance(leaf, Apart)
