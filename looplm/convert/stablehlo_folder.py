"""`looplm convert stablehlo`: a run as a program and its weights, which run where jax is and looplm is not.

The program is StableHLO (`jax.export`), compiled for whatever runs it: CPUs, NVIDIA GPUs, TPUs. It gives logits of
whole sequences, after a depth that is fixed; it has no cache.
"""

from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from rich.console import Console

from looplm.api.loaded import LoadedLM
from looplm.api.loading import load
from looplm.checkpoint.folder import checkpoint_of
from looplm.checkpoint.official_files import Tensor, write_file
from looplm.config.schema import Model
from looplm.convert.files import copy_tokenizer, made_at_once
from looplm.errors import UserError
from looplm.model.context import Context
from looplm.model.depth import Depth
from looplm.model.forward import Forward
from looplm.model.functional import FunctionalLM, Params
from looplm.ops.attention import self_mask
from looplm.ops.precision import at_least_fp32

PLATFORMS = ("cpu", "cuda", "tpu")
DTYPES = {"float32": "F32", "bfloat16": "BF16"}
LOADER = Path(__file__).with_name("stablehlo_loader.py")
"""Goes along, as load.py: it needs jax, flatbuffers and safetensors."""


def write_stablehlo(
    workdir: Path,
    target: Path,
    console: Console,
    *,
    step: int | None = None,
    ema: bool = False,
    num_loops: int | None = None,
    length: int = 128,
    dtype: str = "float32",
    platforms: Sequence[str] = PLATFORMS,
) -> None:
    """Writes the folder: `model.stablehlo`, `model.safetensors`, `load.py` and the tokenizer.

    Args:
        step: which checkpoint; the newest that verifies when None.
        ema: take the moving average of the weights.
        num_loops: the depth; the run's when None.
        length: of the sequences, tokens; a shorter one is filled up behind, where a causal model does not look.
        dtype: of weights and products, float32 or bfloat16. Logits are float32.
        platforms: what the program may run on, of `PLATFORMS`.

    Raises UserError, with nothing written, for a run that is none, and for arguments that are unknown.
    """
    if find_spec("flatbuffers") is None:
        raise UserError("writing programs needs the package flatbuffers; pip install 'looplm[edge]'")
    for name, value, known in (("--dtype", dtype, DTYPES), *(("--platforms", one, PLATFORMS) for one in platforms)):
        if value not in known:
            raise UserError(f"{name} {value} is not known; use one of {', '.join(known)}")
    lm = load(workdir, step=step, ema=ema)
    if lm.model.front is not None and lm.model.front.ids is not None:
        raise UserError(
            f"{workdir} has model.front.ids, a row for the id of every sequence, which the program does not take"
        )
    loops = lm.loop.num_loops if num_loops is None else num_loops
    if loops < 1 or length < 1:
        raise UserError(f"--loops {loops} and --length {length} have to be at least 1")
    # Kernels are made for one kind of device, and this one is made of what all have.
    model = lm.model.model_copy(update={"dtype": dtype, "attention_backend": "blockwise"})
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(lm.params)
    }
    program = exported(model, lm, leaves, loops, length, platforms)
    with made_at_once(target) as making:
        (making / "model.stablehlo").write_bytes(program)
        weights = [Tensor(name, leaf.shape, DTYPES[dtype], partial(np.asarray, leaf)) for name, leaf in leaves.items()]
        write_file(making / "model.safetensors", weights)
        (making / "load.py").write_text(LOADER.read_text())
        copy_tokenizer(checkpoint_of(workdir)[0], making)
    size = sum(tensor.num_bytes for tensor in weights)
    told = f"{loops} loops, sequences of {length}, {dtype}, for {', '.join(platforms)}"
    console.print(f"wrote {target}: {told}; program {len(program) / 1e6:.3g} MB, weights {size / 1e6:.4g} MB")


def exported(
    model: Model, lm: LoadedLM, leaves: dict[str, Any], loops: int, length: int, platforms: Sequence[str]
) -> bytes:
    """Return the program: (weights by name, tokens int32 (B, S)) -> logits (B, S, V) float32, for any B; of a
    model with experts for B = 1."""
    functional, structure = FunctionalLM(model), jax.tree.structure(lm.params)
    names = list(leaves)

    def logits(weights: dict[str, jax.Array], tokens_BS: jax.Array) -> jax.Array:
        params = jax.tree.unflatten(structure, [weights[name] for name in names])
        return last_logits(functional, params, tokens_BS, loops)

    # How experts cut their tokens into blocks depends on how many there are.
    (batch,) = (1,) if functional.num_params_of_experts else export.symbolic_shape("b")
    shapes = {name: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(model.dtype)) for name, leaf in leaves.items()}
    tokens_BS = jax.ShapeDtypeStruct((batch, length), jnp.int32)
    return bytes(export.export(jax.jit(logits), platforms=list(platforms))(shapes, tokens_BS).serialize())


def last_logits(functional: FunctionalLM, params: Params, tokens_BS: jax.Array, loops: int) -> jax.Array:
    """Return the logits (B, S, V) that the model's halting rule reads of all loops, float32."""
    model = functional.bind(params)
    context = Context(
        jnp.broadcast_to(jnp.arange(tokens_BS.shape[1]), tokens_BS.shape),
        self_mask(functional.config, jnp.zeros_like(tokens_BS), None),
        key=jax.random.key(0),
        sequence_B=jnp.arange(tokens_BS.shape[0]),
    )
    forward = Forward(model, tokens_BS, context, Depth(loops), jnp.dtype(functional.config.dtype))
    return at_least_fp32(model.logits(forward("last").read[-1]))
