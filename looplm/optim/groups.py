"""Which parameters decay, which learning rate they have, and which of them Muon reads as matrices.

Decided from a parameter's declaration (`model.layers.parameter`, `in_group`); every function that looks at all
parameters returns a tree like them.
"""

from typing import Any

import optax
from flax import nnx
from optax.contrib import MuonDimensionNumbers

from looplm.config.schema import Muon, Optim
from looplm.model.functional import FunctionalLM
from looplm.model.layers import Group
from looplm.optim.learning import declared, selected

MATRICES: tuple[Group, ...] = ("layers", "injection")
"""Groups whose matrices Muon gets."""


IDS, REST = "ids", "rest"
"""Labels of tables of ids, which are a group too, and of all else."""


def id_labels(lm: FunctionalLM) -> dict[str, Any]:
    """`ids` or `rest`, for optax.partition."""
    return lm.map(lambda _, declaration: IDS if declaration.group == IDS else REST, lm.shapes)


def decay_mask(lm: FunctionalLM) -> dict[str, Any]:
    """True for parameters with weight decay."""
    return lm.map(lambda _, declaration: declaration.decays, lm.shapes)


def learning_rates(config: Optim, lm: FunctionalLM) -> dict[str, Any]:
    """Each parameter's learning rate as a multiple of the schedule's; where several multiples apply, their product."""
    of_group = {"gate": config.gate_rate, "injection": config.injection_rate}
    parts = declared(lm)
    multiples = {id(variable): 1.0 for variable in parts.values()}
    for word, multiple in config.rates.items():
        for path in selected("optim.rates", [word], parts):
            multiples[id(parts[path])] *= multiple

    def rate(_: Any, declaration: nnx.Param) -> float:
        rate = of_group.get(declaration.group, 1.0) * multiples[id(declaration)]
        if isinstance(config.optimizer, Muon) and matrix_dims(declaration) is None:
            rate *= config.optimizer.adamw_rate
        return rate

    return lm.map(rate, lm.shapes)


def muon_labels(lm: FunctionalLM) -> dict[str, Any]:
    """`muon` or `adamw`, for optax.partition."""
    return lm.map(lambda _, declaration: "adamw" if matrix_dims(declaration) is None else "muon", lm.shapes)


def muon_dims(lm: FunctionalLM) -> dict[str, Any]:
    """MuonDimensionNumbers; optax.MaskedNode in place of what Muon does not get, as optax.partition has it."""
    return lm.map(lambda _, declaration: matrix_dims(declaration) or optax.MaskedNode(), lm.shapes)


def matrix_dims(declaration: nnx.Param) -> MuonDimensionNumbers | None:
    """Which dims of a parameter are the inputs of a linear map and which its outputs; None if Muon does not get it.

    Muon gets the matrices of the layers and of the injection, but for those that weight decay spares. A matrix that
    writes the residual stream has `embed` last, and all that precedes it is input; in one that reads it, the inputs end
    with `embed`, or with some `channels` of it:

        query, key, value    embed | heads, head_dim        output    heads, head_dim | embed
        gate, up             embed | hidden                 down      hidden | embed
        injection            one, embed | embed_out         value gate    channels | kv_heads
        router               embed | routes                 an expert's   as gate, up and down; every one a matrix
        modulation           embed | one, embed_out

    Counted from the end: leading dims of layers and experts belong to neither side, so each is a matrix of its own.
    """
    axes = tuple(axis for axis in declaration.axes if axis not in ("experts", "head_experts"))
    if not declaration.decays or len(axes) < 2 or declaration.group not in MATRICES:
        return None
    read = "embed" if "embed" in axes else "channels"
    inputs = len(axes) - 1 if axes[-1] == "embed" else axes.index(read) + 1
    dims = range(-len(axes), 0)
    return MuonDimensionNumbers(tuple(dims[:inputs]), tuple(dims[inputs:]))
