"""`looplm convert import`: an official model's folder becomes a run directory with a checkpoint of step 0.

The weights go over one tensor after the other, so memory is bounded by the largest one and not by the model. The run is
written beside its place and gets its name when all of it was read back and found equal.
"""

import json
import math
from collections.abc import Collection
from pathlib import Path

import numpy as np
from rich.console import Console

from looplm.checkpoint.adapters import kind_of
from looplm.checkpoint.adapters.base import official_tensor
from looplm.checkpoint.folder import place_of
from looplm.checkpoint.hf_folder import HFFolder
from looplm.checkpoint.lineage import OFFICIAL
from looplm.checkpoint.reader import CheckpointReader
from looplm.checkpoint.stored_rows import StoredRows
from looplm.checkpoint.streamed import write_streamed
from looplm.config.load import to_json
from looplm.config.schema import Data, Loop, Model, Objective, Optim, Run
from looplm.convert.files import copy_tokenizer, made_at_once
from looplm.convert.parity import compare_logits
from looplm.data.tokenizer.official import official_tokenizer
from looplm.errors import UserError

LENGTH_KEYS = ("max_position_embeddings", "block_size")
LONGEST, SEQUENCES = 1024, 4
"""Of the batches that `looplm eval` reads: tokens of a window at most, and windows."""
TORCH_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
LOGITS_BYTES = 2_000_000_000
"""Models up to this size, in float32, are also run: both the folder's and the run's have to be held for that."""


def import_folder(
    source: Path, workdir: Path, console: Console, *, allow_keys: Collection[str] = (), reference: bool = False
) -> None:
    """Writes the run, and says how far what it holds is what the folder holds.

    Args:
        allow_keys: keys of config.json to pass over, which looplm does not know.
        reference: also compare logits with those of the library transformers, which holds the model twice.

    Raises UserError, with nothing written, for a folder that is no model, or a damaged or unknown one.
    """
    folder = HFFolder(source, allow_keys)
    model, loop = folder.model(), folder.loop()
    params = folder.streamed(model)
    if (tokenizer := official_tokenizer(source)) is not None and tokenizer.vocab_size > model.vocab_size:
        raise UserError(
            f"the tokenizer {tokenizer.path} has {tokenizer.vocab_size} tokens and the model {model.vocab_size}; it is "
            "another model's: put the right one there, or take it away"
        )
    config = to_json(run_of(model, loop, folder.adapter.objective, length_of(folder)))
    with made_at_once(workdir) as making:
        write_streamed(making / "checkpoints", 0, params, config=config, seed=0, metrics={})
        equal = _read_back(folder, model, making / "checkpoints")
        (making / "config.json").write_text(config)
        stored = folder.stored_config | {"torch_dtype": TORCH_DTYPES.get(folder.stored_dtype(), "float32")}
        (making / OFFICIAL).write_text(json.dumps(stored, indent=2) + "\n")
        copied = copy_tokenizer(source, making)
        console.print(f"{source}: {kind_of(folder.stored_config)}, {_told(model, loop)}")
        console.print(f"parity: {equal} tensors are equal to the bit")
        if 4 * sum(math.prod(leaf.shape) for leaf in _leaves(params)) <= LOGITS_BYTES or reference:
            for line in compare_logits(source, making, allow_keys, reference=reference):
                console.print(f"parity: {line}")
        console.print(f"tokenizer: {', '.join(copied) or 'none in the folder'}")
    console.print(f"wrote {workdir}, a run after 0 steps")


def run_of(model: Model, loop: Loop, objective: Objective, length: int) -> Run:
    """A run that has read nothing: its model, and windows of a length for `looplm eval`."""
    window = min(length, LONGEST)
    return Run(
        num_steps=1,
        model=model,
        loop=loop,
        objective=objective,
        optim=Optim(learning_rate=1e-5),
        data=Data(train=(), sequence_length=window, batch_tokens=SEQUENCES * window),
    )


def length_of(folder: HFFolder) -> int:
    """Of the sequences that a model takes, as its config says; LONGEST where that says no such number."""
    found = next((folder.stored_config[key] for key in LENGTH_KEYS if key in folder.stored_config), LONGEST)
    return found if isinstance(found, int) and found > 0 else LONGEST


def _read_back(folder: HFFolder, model: Model, checkpoints: Path) -> int:
    """How many official tensors the checkpoint gives as the folder has them."""
    seal = CheckpointReader(checkpoints).verified(0)
    rows, (tensors, get) = StoredRows(place_of(checkpoints, 0), seal, in_rows=True), folder.checked(model)
    for tensor in sorted(tensors, key=lambda tensor: tensor.parts[0].path):
        if not np.array_equal(official_tensor(tensor, rows), get(tensor.name)):
            raise AssertionError(f"{tensor.name} was written as something else")
    return len(tensors)


def _leaves(params: dict) -> list:
    import jax

    return jax.tree.leaves(params)


def _told(model: Model, loop: Loop) -> str:
    parts = [("prelude", model.prelude_layers), ("block", model.block_layers), ("coda", model.coda_layers)]
    layers = ", ".join(f"{name} of {count} layers" for name, count in parts if count)
    loops = f"{loop.num_loops} loop{'s' * (loop.num_loops > 1)}"
    return f"{layers}, {loops}, width {model.dim}, {model.vocab_size} tokens"
