"""`looplm convert retrofit`: cuts a model and writes the looped one as a run directory with a checkpoint of step 0.

The weights go over one row after the other; both models are held only where they are compared, or looked into to choose
layers.
"""

import json
import math
import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from rich.console import Console

from looplm.checkpoint.adapters.places import STACKS, of_injection, of_layer, of_low_rank
from looplm.checkpoint.digest import named_leaves
from looplm.checkpoint.folder import checkpoint_of
from looplm.checkpoint.lineage import OFFICIAL, official_config
from looplm.checkpoint.streamed import Streamed, write_streamed
from looplm.config.load import to_json
from looplm.config.schema import FinalCrossEntropy, Loop, LoRA, Model, MoE
from looplm.convert.files import check_new, copy_tokenizer, made_at_once
from looplm.convert.import_folder import run_of
from looplm.convert.parity import fixed_ids
from looplm.convert.retrofit.angular import nearest
from looplm.convert.retrofit.cut import Cut, Origin, Ranges, averaged, cut, evenly, num_chosen
from looplm.convert.retrofit.equality import equality, table
from looplm.convert.retrofit.relaxed import Relaxed
from looplm.convert.retrofit.source import Source, open_source
from looplm.convert.retrofit.stages import mean_layer, plain_stack, run_stages
from looplm.data.manifest import TEMPLATE_FILE
from looplm.data.tokenizer import Tokenizer
from looplm.data.tokenizer.official import official_tokenizer
from looplm.errors import UserError
from looplm.model.functional import FunctionalLM, Params
from looplm.model.injection import build_injection
from looplm.model.layers import LoopParam

INJECTIONS: dict[str, dict[str, Any]] = {
    "none": {"injection": {"kind": "none"}, "state_init": {"kind": "input"}},
    "concat": {"injection": {"kind": "concat", "init": "input"}, "state_init": {"kind": "input"}},
    "add": {"injection": {"kind": "add"}, "state_init": {"kind": "zeros"}},
    "gate": {"injection": {"kind": "gate"}, "state_init": {"kind": "input"}},
}
"""With each of them the block gets the prelude's output itself in the first loop."""
RELAXED: dict[str, dict[str, Any]] = {
    "none": INJECTIONS["none"],
    "concat": {"injection": {"kind": "concat", "init": "state"}, "state_init": {"kind": "input"}},
}
"""With each of them the block gets the state itself in every loop."""
COPIES, COPIES_TO_CHOOSE = 4, 2
"""Of the weights in float32, that comparing the two models holds at most, and running the original alone."""
TEXT_ROWS, TEXT_LENGTH = 8, 256
"""Of a text, so many tokens at most are looked at to choose layers."""
TEXT_CHARACTERS = 64 * TEXT_ROWS * TEXT_LENGTH
"""So much of it at most is read for them."""


class Wish(NamedTuple):
    """What was asked for on the command line."""

    prelude: str | None
    block: str
    coda: str | None
    loops: int
    inject: str
    select: str
    layers: int | None
    text: Path | None
    lora_rank: int | None = None


def retrofit(source: Path, workdir: Path, wish: Wish, console: Console, *, allow_keys: Collection[str] = ()) -> None:
    """Writes the run, and prints how far one loop of it is the stack of the kept layers.

    Raises UserError, with nothing written, for ranges that do not fit the model, for a model that is no plain stack,
    and for a damaged or unknown folder.
    """
    if wish.inject not in INJECTIONS:
        raise UserError(f"--inject {wish.inject} is not known; use one of {', '.join(INJECTIONS)}")
    if wish.loops < 1:
        raise UserError(f"--loops {wish.loops} must be at least 1; use e.g. 4")
    check_new(workdir)  # to choose layers may take long
    original = open_source(source, allow_keys)
    ranges = Ranges.of(original.num_layers, prelude=wish.prelude, block=wish.block, coda=wish.coda)
    count = num_chosen(ranges, wish.select, wish.layers, wish.loops)
    if wish.text is not None and wish.select != "angular":
        raise UserError(f"--text is looked at by --select angular alone, and not by {wish.select}; leave it out")
    block, chosen_by = _block(original, ranges, count, wish)
    layers = cut(ranges, block)
    relaxed = None if wish.lora_rank is None else _relaxed(original, ranges, layers, wish, wish.lora_rank)
    looped = _looped(original.model, layers, wish, relaxed)
    run = run_of(looped, Loop(num_loops=wish.loops), FinalCrossEntropy(), original.length)
    with made_at_once(workdir) as making:
        params = _streamed(original, run.model, layers, relaxed)
        write_streamed(making / "checkpoints", 0, params, config=to_json(run), seed=0, metrics={})
        (making / "config.json").write_text(to_json(run))
        root = checkpoint_of(source)[0]
        if official := original.config or official_config(root):
            (making / OFFICIAL).write_text(json.dumps(official, indent=2) + "\n")
        copied = copy_tokenizer(root, making)
        if (root / TEMPLATE_FILE).is_file():
            shutil.copyfile(root / TEMPLATE_FILE, making / TEMPLATE_FILE)
        console.print(f"{source}: {original.num_layers} layers{chosen_by}", highlight=False)
        console.print(f"kept: {layers}; {wish.loops} loops, injection {wish.inject}", highlight=False, soft_wrap=True)
        for line in _compared(original, layers, making, params, relaxed, wish.loops):
            console.print(line, highlight=False, soft_wrap=True)
        console.print(f"tokenizer: {', '.join(copied) or 'none in the folder'}")
    console.print(f"wrote {workdir}, a run after 0 steps")


def _block(source: Source, ranges: Ranges, count: int, wish: Wish) -> tuple[list[Origin], str]:
    """The layers of the block, and what is to be said of the choice."""
    match wish.select:
        case "even":
            return evenly(ranges.block, count), ""
        case "average":
            return averaged(ranges.block, count), ""
        case "angular":
            size = COPIES_TO_CHOOSE * bytes_of(FunctionalLM(source.model).shapes)
            if size > memory_bytes():
                raise UserError(
                    f"--select angular runs the whole model, which takes {size / 1e9:.3g} GB of memory, more than "
                    "there is; use even or average"
                )
            ids_BS, of_what = _sample(source, wish.text)
            stages = run_stages(*plain_stack(source, tuple((i,) for i in range(source.num_layers))), ids_BS)
            entered_LBSD = np.concatenate([np.moveaxis(np.asarray(stages.layers_BLSD), 1, 0), stages.state_BSD[None]])
            layers_NSD = entered_LBSD.reshape(len(entered_LBSD), -1, entered_LBSD.shape[-1])
            return nearest(ranges.block, count, layers_NSD), f", angles between them of {ids_BS.size} {of_what}"
        case _:
            return [(i,) for i in ranges.block], ""


def _sample(source: Source, text: Path | None) -> tuple[np.ndarray, str]:
    """Ids to look at, (B, S), and what they are."""
    if text is None:
        return fixed_ids(source.model.vocab_size), "fixed ids; give --text for those of a text"
    root = checkpoint_of(source.path)[0]
    tokenizer = official_tokenizer(root) if source.config else Tokenizer.find(root)
    if tokenizer is None:
        raise UserError(f"--text needs a tokenizer, and {source.path} has none; leave it out for fixed ids")
    try:
        with text.open() as file:
            ids = np.asarray(tokenizer.encode(file.read(TEXT_CHARACTERS)), np.int32)[: TEXT_ROWS * TEXT_LENGTH]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--text {text} cannot be read ({error}); give a text file") from error
    length = min(TEXT_LENGTH, len(ids))
    if length < 2 or int(ids.max()) >= source.model.vocab_size:
        raise UserError(f"--text {text} gives {len(ids)} tokens of another model or too few; give more of its text")
    return ids[: len(ids) // length * length].reshape(-1, length), f"tokens of {text}"


def _relaxed(source: Source, ranges: Ranges, layers: Cut, wish: Wish, rank: int) -> Relaxed:
    """Raises UserError where loops and layers do not come to the range, or loops begin with something else than the
    state."""
    if rank < 1:
        raise UserError(f"--lora-rank {rank} must be at least 1; leave it out for loops that share all")
    if wish.loops * len(layers.block) != len(ranges.block):
        raise UserError(
            f"--lora-rank: {wish.loops} loops of {len(layers.block)} layers are not the {len(ranges.block)} layers of "
            "--block that they stand for; choose with --select average or even, without --layers"
        )
    if wish.inject not in RELAXED:
        raise UserError(
            f"--lora-rank has every loop go on from the state, as the layers did, and --inject {wish.inject} adds the "
            f"input; use one of {', '.join(RELAXED)}"
        )
    if source.model.qk_bias or source.model.norm == "layer":
        raise UserError("--lora-rank: biases of layers would be shared by loops; leave it out for this model")
    if isinstance(source.model.feed_forward, MoE):
        raise UserError(
            "--lora-rank: experts have no adapters and would be shared by loops; leave it out for this model"
        )
    return Relaxed(source, ranges.block, layers.block, rank)


def _looped(model: Model, layers: Cut, wish: Wish, relaxed: Relaxed | None) -> Model:
    sizes: dict[str, Any] = {f"{place}_layers": len(layers.of(place)) for place in STACKS}
    parts = INJECTIONS[wish.inject]
    if relaxed is not None:
        rank, loops = relaxed.rank, wish.loops
        parts = RELAXED[wish.inject]
        sizes["adapter"] = LoRA(targets=("block",), rank=rank, alpha=rank, loops=loops).model_dump()
        sizes["norm_loops"] = loops
    return Model.model_validate(model.model_dump() | sizes | parts)


def _streamed(source: Source, model: Model, layers: Cut, relaxed: Relaxed | None) -> Params:
    """All parameters, as leaves that are made while they are written."""
    lm = FunctionalLM(model)
    of_a_loop = named_leaves(lm.map(lambda _, variable: isinstance(variable, LoopParam), lm.shapes))
    injection = named_leaves(nnx.to_pure_dict(nnx.state(build_injection(model, rngs=nnx.Rngs(0)))))

    def leaf(path: tuple[Any, ...], shape: jax.ShapeDtypeStruct) -> Streamed:
        name = jax.tree_util.keystr(path, simple=True, separator=".")

        def rows() -> Iterator[np.ndarray]:
            if (found := of_layer(name)) is not None:
                place, within = found
                if relaxed is not None and (pair := of_low_rank(within)) is not None:
                    yield from relaxed.low_rank(*pair, shape.shape)
                    return
                if relaxed is not None and of_a_loop[name]:
                    yield from relaxed.scales(within)
                    return
                for origin in layers.of(place):
                    yield mean_layer(source, within, origin)[None]
            elif (own := of_injection(name)) is not None:
                yield np.asarray(injection[own])
            else:
                yield source.read(name, None)

        return Streamed(shape.shape, np.dtype(np.float32), rows)

    return jax.tree_util.tree_map_with_path(leaf, lm.shapes)


def bytes_of(params: Params) -> int:
    """Of weights, or their shapes, in float32."""
    return 4 * sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def memory_bytes() -> int:
    """Of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _compared(
    source: Source, layers: Cut, workdir: Path, params: Params, relaxed: Relaxed | None, loops: int
) -> Iterator[str]:
    size = bytes_of(params)
    if COPIES * size > memory_bytes():
        yield f"equality: not looked at, since that takes {COPIES * size / 1e9:.3g} GB of memory, more than there is"
        return
    if relaxed is not None:
        whole = Cut(layers.prelude, tuple((i,) for i in relaxed.layers), layers.coda)
        yield f"equality: {loops} loops with adapters of rank {relaxed.rank} against the layers that they stand for"
        yield from table(equality(source, whole, workdir, loops))
        return
    rows = equality(source, layers, workdir)
    yield f"equality: one loop against the original with the kept layers alone ({len(layers.kept)}), fixed ids"
    yield from table(rows)
    if odd := [row.stage for row in rows if not row.equal]:
        raise AssertionError(f"one loop is not the stack of the kept layers: {', '.join(odd)}")
