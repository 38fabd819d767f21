"""`looplm convert gguf`: a run as one GGUF file, which llama.cpp and what is built on it run.

llama.cpp has one architecture with loops, that of Nanbeige (arXiv 2607.22083): the stack of a Llama that runs several
times, whose layers are stored once and whose last norm stands between loops as well, or does not. A model that is
something else is refused, by the names of its settings.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from looplm.checkpoint.adapters.base import official_tensor
from looplm.checkpoint.adapters.expressible import family_of
from looplm.config.schema import LinearScaling, Model, NoScaling, Run
from looplm.convert.files import check_new
from looplm.convert.gguf_tokenizer import add_tokenizer
from looplm.convert.stored_model import stored_model
from looplm.data.tokenizer import Tokenizer
from looplm.errors import UserError

FAMILY = "nanbeige"
"""Of llama.cpp, and of ours."""
BLOCK = 32
"""Numbers that share a scale in the types of few bits."""
QUANTISED = {"q8_0": "Q8_0", "q5_0": "Q5_0", "q4_0": "Q4_0"}
TYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16", **QUANTISED}
"""What matrices may be stored in; vectors are float32 always."""
ENDS = ("token_embd.weight", "output.weight")
"""Of few bits only down to eight, as llama.cpp keeps them better than the rest."""


class Entry(NamedTuple):
    """A tensor of the file."""

    name: str
    shape: tuple[int, ...]
    kind: str
    """One of gguf's names of types."""
    make: Callable[[], np.ndarray]
    """Gives float32."""


def write_gguf(
    workdir: Path, target: Path, console: Console, *, step: int | None = None, kind: str = "f16", ema: bool = False
) -> None:
    """Writes the file, tensor by tensor, and gives it its name when it is whole.

    Args:
        step: which checkpoint; the newest that verifies when None.
        kind: what matrices are stored in, one of `TYPES`.
        ema: take the moving average of the weights.

    Raises UserError, with nothing written, for a run that is none, and for a model, a tokenizer or a type that does not
    fit.
    """
    if kind not in TYPES:
        raise UserError(f"--type {kind} is not known; use one of {', '.join(TYPES)}")
    try:
        import gguf
    except ImportError as error:
        raise UserError("writing GGUF files needs the package gguf; pip install 'looplm[edge]'") from error
    if target.suffix != ".gguf":
        raise UserError(f"{target} should end in .gguf, by which programs know such a file; e.g. {target}.gguf")
    check_new(target)
    run, root, seal, rows = stored_model(workdir, step=step, ema=ema)
    _check(run, workdir, kind)
    _, adapter = family_of(run.model, run.loop, FAMILY)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, run.model.block_layers)
    entries = [
        Entry(name, tensor.shape, _kind(name, tensor.shape, kind), partial(_laid_out, run.model, name, tensor, rows))
        for tensor in adapter.tensors(run.model)
        if (name := names.get_name(tensor.name, try_suffixes=(".weight",)))
    ]
    making = target.with_name(f"{target.name}.making")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        writer = gguf.GGUFWriter(making, FAMILY)
        _describe(writer, run, kind)
        told = add_tokenizer(writer, Tokenizer.find(root), run.model.vocab_size)
        size = _write(writer, entries)
        making.replace(target)
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror}; give another file") from error
    finally:
        making.unlink(missing_ok=True)
    which = f"step {seal.step}{', averaged weights' * ema}"
    console.print(f"wrote {target}: {FAMILY}, {which}, {size / 1e6:.4g} MB of {kind}", soft_wrap=True)
    console.print(f"tokenizer: {told}; {run.loop.num_loops} loops of {run.model.block_layers} layers", soft_wrap=True)


def _check(run: Run, workdir: Path, kind: str) -> None:
    try:
        family_of(run.model, run.loop, FAMILY)
    except UserError as error:
        raise UserError(
            f"{workdir} cannot be written as GGUF: llama.cpp runs looped models as the {FAMILY} architecture, and "
            f"{error}; configs/edge.py trains models that fit"
        ) from error
    if not isinstance(run.model.rope.scaling, NoScaling | LinearScaling):
        raise UserError(f"{workdir} has model.rope.scaling={run.model.rope.scaling.kind}, which is not written as GGUF")
    widths = {"model.dim": run.model.dim, "model.hidden_dim": run.model.hidden_dim}
    widths["heads of an attention together"] = run.model.num_heads * run.model.head_size
    for name, width in widths.items() if kind in QUANTISED else ():
        if width % BLOCK:
            raise UserError(f"{name}={width} cannot be cut into blocks of {BLOCK}, which {kind} needs; use --type f16")


def _kind(name: str, shape: tuple[int, ...], kind: str) -> str:
    if len(shape) == 1:
        return "F32"
    return "Q8_0" if kind in QUANTISED and name in ENDS else TYPES[kind]


def _laid_out(model: Model, name: str, tensor: Any, rows: Any) -> np.ndarray:
    """Return a tensor as llama.cpp has it: it turns pairs of neighbours by the angles of a head, and we its halves."""
    value = official_tensor(tensor, rows).astype(np.float32)
    heads = {"attn_q": model.num_heads, "attn_k": model.kv_heads}.get(name.split(".")[-2])
    if heads is None:
        return value
    return value.reshape(heads, 2, -1, value.shape[-1]).swapaxes(1, 2).reshape(value.shape)


def _describe(writer: Any, run: Run, kind: str) -> None:
    import gguf

    model = run.model
    writer.add_file_type(gguf.LlamaFileType[f"{'ALL' if kind == 'f32' else 'MOSTLY'}_{TYPES[kind]}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_block_count(model.block_layers)
    writer.add_context_length(run.data.sequence_length)
    writer.add_embedding_length(model.dim)
    writer.add_feed_forward_length(model.hidden_dim)
    writer.add_head_count(model.num_heads)
    writer.add_head_count_kv(model.kv_heads)
    writer.add_key_length(model.head_size)
    writer.add_value_length(model.head_size)
    writer.add_layer_norm_rms_eps(model.norm_eps)
    writer.add_rope_dimension_count(model.head_size)
    writer.add_rope_freq_base(model.rope.theta)
    if isinstance(model.rope.scaling, LinearScaling):
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(model.rope.scaling.factor)
    writer.add_vocab_size(model.vocab_size)
    writer.add_uint32(f"{FAMILY}.num_loops", run.loop.num_loops)
    writer.add_bool(f"{FAMILY}.skip_loop_final_norm", not model.norm_at_loop_end)


def _write(writer: Any, entries: list[Entry]) -> int:
    """Write the file, one tensor in memory at a time, and return the bytes of all tensors."""
    from gguf import GGMLQuantizationType, quant_shape_to_byte_shape

    for name, shape, kind, _ in entries:
        stored = GGMLQuantizationType[kind]
        in_bytes = quant_shape_to_byte_shape(shape, stored)
        writer.add_tensor_info(name, in_bytes, np.dtype(np.uint8), int(np.prod(in_bytes)), stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    size = 0
    for encoded in _encoded(entries):
        writer.write_tensor_data(encoded)
        size += encoded.nbytes
    writer.close()
    return size


def _encoded(entries: list[Entry]) -> Iterator[np.ndarray]:
    from gguf import GGMLQuantizationType, quants

    for entry in entries:
        value = entry.make()
        if entry.kind == "F16" and np.abs(value).max(initial=0) > np.finfo(np.float16).max:
            raise UserError(f"{entry.name} holds numbers above 65504, which float16 cannot; use --type bf16 or f32")
        yield np.ascontiguousarray(quants.quantize(value, GGMLQuantizationType[entry.kind]))
