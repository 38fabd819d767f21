"""`looplm convert export`: a run's weights as an official model's folder, which the authors' code reads."""

import json
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from looplm.checkpoint.adapters import Adapter
from looplm.checkpoint.adapters.base import official_tensor
from looplm.checkpoint.adapters.expressible import family_of
from looplm.checkpoint.lineage import GENERATION, official_config
from looplm.checkpoint.official_files import Tensor, write_tensors
from looplm.config.schema import Model, Run
from looplm.convert.averaged import Rows
from looplm.convert.files import copy_tokenizer, made_at_once
from looplm.convert.import_folder import LENGTH_KEYS, TORCH_DTYPES
from looplm.convert.model_card import model_card
from looplm.convert.stored_model import stored_model
from looplm.data.tokenizer import Tokenizer
from looplm.data.tokenizer.official import official_tokenizer
from looplm.errors import UserError

WORDS = {name: word for word, name in TORCH_DTYPES.items()}


def export_run(
    workdir: Path,
    target: Path,
    console: Console,
    *,
    step: int | None = None,
    kind: str | None = None,
    dtype: str | None = None,
    ema: bool = False,
) -> None:
    """Writes the folder.

    Args:
        step: which checkpoint; the newest that verifies when None.
        kind: the family; the first that can say the model when None.
        dtype: of the stored numbers; for weights as they were imported theirs, else float32, when None.
        ema: take the moving average of the weights.

    Raises UserError, with nothing written, for a run that is none, and for a model that the family cannot say, by the
    names of the settings.
    """
    if dtype is not None and dtype not in WORDS:
        raise UserError(f"--dtype {dtype} is not known; use one of {', '.join(WORDS)}")
    run, root, seal, rows = stored_model(workdir, step=step, ema=ema)
    try:
        name, adapter = family_of(run.model, run.loop, kind)
    except UserError as error:
        raise UserError(f"{workdir} cannot be exported: {error}; looplm reads it as it is") from error
    source = official_config(root)
    word = WORDS[dtype or (source.get("torch_dtype", "float32") if seal.step == 0 else "float32")]
    config = _config(run, adapter, name, source, root) | {"torch_dtype": TORCH_DTYPES[word]}
    tensors = [*_tensors(run.model, adapter, rows, word), *_buffers(run.model, adapter, config)]
    with made_at_once(target) as making:
        files = write_tensors(making, tensors)
        (making / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        copied = copy_tokenizer(root, making)
        if GENERATION not in copied:
            ids = {key: value for key, value in config.items() if key.endswith("_token_id")}
            (making / GENERATION).write_text(json.dumps(ids, indent=2) + "\n")
        num_parameters = sum(math.prod(tensor.shape) for tensor in tensors)
        (making / "README.md").write_text(model_card(run, seal, root, name, num_parameters, ema=ema))
    size = sum(tensor.num_bytes for tensor in tensors)
    told = f"{len(tensors)} tensors, {size / 1e9:.3g} GB of {TORCH_DTYPES[word]} in {len(files)} files"
    console.print(f"wrote {target}: {name}, step {seal.step}{', averaged weights' * ema}, {told}")
    console.print(f"tokenizer: {', '.join(copied) or 'none in the run'}")
    if "auto_map" in source:
        console.print("note: the authors' Python files are not written; put them there to load with trust_remote_code")


def _config(run: Run, adapter: Adapter[Any], kind: str, source: dict[str, Any], root: Path) -> dict[str, Any]:
    """What the family says of the model; what changes no number stays as it came."""
    assert adapter.describe is not None, "a family that is written"
    kept = source if source.get("model_type") == kind else {}
    length = next((kept[key] for key in LENGTH_KEYS if key in kept), run.data.sequence_length)
    config = adapter.describe(run.model, run.loop, length)
    without_effect = {key: value for key, value in kept.items() if key in adapter.config.WITHOUT_EFFECT}
    without_effect.pop("auto_map", None)  # of code that is not written
    return _token_ids(root) | without_effect | config


def _token_ids(root: Path) -> dict[str, int]:
    try:
        tokenizer = official_tokenizer(root) or Tokenizer.find(root)
    except UserError:
        return {}  # which one it is does not matter to the weights
    ids = {} if tokenizer is None else {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    return {key: value for key, value in ids.items() if value >= 0}


def _tensors(model: Model, adapter: Adapter[Any], rows: Rows, word: str) -> Iterator[Tensor]:
    """In the order of our leaves: a checkpoint of a run holds every leaf as one piece, which is read once."""

    for tensor in sorted(adapter.tensors(model), key=lambda tensor: tensor.parts[0].path):
        yield Tensor(tensor.name, tensor.shape, word, partial(official_tensor, tensor, rows))


def _buffers(model: Model, adapter: Adapter[Any], config: dict[str, Any]) -> Iterator[Tensor]:
    """Tables that the authors' code reads from the file."""
    length = next(config[key] for key in LENGTH_KEYS if key in config)
    for name, table in adapter.buffers.items():
        value = table(model, (1, length))
        yield Tensor(name, value.shape, "F32", partial(np.asarray, value))
