"""Which parameters decay, which learning rate they have, and which of them Muon reads as matrices.

Decided from a parameter's declaration (`model.layers.parameter`) and its place in the model; every function that looks
at all parameters returns a tree like them.
"""

from typing import Any

import jax
import optax
from flax import nnx
from optax.contrib import MuonDimensionNumbers

from looplm.config.schema import Muon, Optim
from looplm.model.functional import FunctionalLM

GATE, INJECTION = "gate/", "core/injection/"
LAYERS = ("prelude/", "core/block/", "coda/")


def decay_mask(lm: FunctionalLM) -> dict[str, Any]:
    """True for parameters with weight decay."""
    return lm.map(lambda _, declaration: declaration.decays, lm.shapes)


def learning_rates(config: Optim, lm: FunctionalLM, *, gate_only: bool = False) -> dict[str, Any]:
    """Each parameter's learning rate as a multiple of the schedule's; where two multiples apply, their product.

    gate_only: 0 for all but the exit gate.
    """

    def rate(path: str, declaration: nnx.Param) -> float:
        rate = 0.0 if gate_only and not path.startswith(GATE) else 1.0
        if path.startswith(GATE):
            rate *= config.gate_rate
        if path.startswith(INJECTION):
            rate *= config.injection_rate
        if isinstance(config.optimizer, Muon) and matrix_dims(path, declaration) is None:
            rate *= config.optimizer.adamw_rate
        return rate

    return lm.map(rate, _paths(lm))


def muon_labels(lm: FunctionalLM) -> dict[str, Any]:
    """`muon` or `adamw`, for optax.partition."""
    return lm.map(lambda *parameter: "adamw" if matrix_dims(*parameter) is None else "muon", _paths(lm))


def muon_dims(lm: FunctionalLM) -> dict[str, Any]:
    """MuonDimensionNumbers; optax.MaskedNode in place of what Muon does not get, as optax.partition has it."""
    return lm.map(lambda *parameter: matrix_dims(*parameter) or optax.MaskedNode(), _paths(lm))


def matrix_dims(path: str, declaration: nnx.Param) -> MuonDimensionNumbers | None:
    """Which dims of a parameter are the inputs of a linear map and which its outputs; None if Muon does not get it.

    Muon gets the matrices of the layers and of the injection, but for those that weight decay spares. A matrix that
    writes the residual stream has `embed` last, and all that precedes it is input; in one that reads it, the inputs end
    with `embed`, or with some `channels` of it:

        query, key, value    embed | heads, head_dim        output    heads, head_dim | embed
        gate, up             embed | hidden                 down      hidden | embed
        injection            one, embed | embed_out         value gate    channels | kv_heads
        router               embed | routes                 an expert's   as gate, up and down; every one a matrix

    Counted from the end: leading dims of layers and experts belong to neither side, so each is a matrix of its own.
    """
    axes = tuple(axis for axis in declaration.axes if axis not in ("experts", "head_experts"))
    if not declaration.decays or len(axes) < 2 or not path.startswith((*LAYERS, INJECTION)):
        return None
    read = "embed" if "embed" in axes else "channels"
    inputs = len(axes) - 1 if axes[-1] == "embed" else axes.index(read) + 1
    dims = range(-len(axes), 0)
    return MuonDimensionNumbers(tuple(dims[:inputs]), tuple(dims[inputs:]))


def _paths(lm: FunctionalLM) -> dict[str, Any]:
    """The path of every parameter, as in `core/block/layers/attention/query/kernel`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path, simple=True, separator="/"), lm.shapes
    )
