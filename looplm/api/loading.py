"""`looplm.load`: from a run directory, a checkpoint or an official folder to a model that is called from Python."""

from collections.abc import Collection
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp

from looplm.api.loaded import LoadedLM
from looplm.checkpoint.folder import checkpoint_of
from looplm.checkpoint.hf_folder import HFFolder, is_official
from looplm.config.load import from_json
from looplm.config.schema import Model
from looplm.data.manifest import TEMPLATE_FILE
from looplm.data.tokenizer.official import official_tokenizer, tokenizer_of
from looplm.errors import UserError
from looplm.eval.weights import restore_weights
from looplm.metrics.kv_loss import KIND
from looplm.metrics.stored import file_name
from looplm.model.functional import FunctionalLM

DType = Literal["bfloat16", "float32", "float64"]


def load(
    path: str | Path,
    *,
    step: int | None = None,
    dtype: DType | None = None,
    ema: bool = False,
    allow_keys: Collection[str] = (),
) -> LoadedLM:
    """Loads a model onto the default device.

    Args:
        path: a run directory of `looplm train`, one of its checkpoints (RUN/checkpoints/12), or a folder with an
            official config.json and safetensors files, and its tokenizer if it is to write.
        step: which checkpoint of a run; the newest when None.
        dtype: overrides the compute type. With float64 (and jax_enable_x64) the parameters are float64 too.
        ema: take the moving average of the run's weights.
        allow_keys: keys of an official config.json that looplm does not know, and would refuse, to pass over.

    Raises UserError when the folder is neither, has no such checkpoint or average, or its files do not fit its config.
    """
    if is_official(root := Path(path)):
        for name, value in (("ema", ema or None), ("step", step)):
            if value is not None:
                raise UserError(
                    f"{name}={value} needs a run of looplm, and {path} is an official checkpoint; leave it out"
                )
        return _load_official(HFFolder(root, allow_keys), dtype)
    if allow_keys:
        raise UserError(
            f"allow_keys={list(allow_keys)} is of an official config.json, and {path} is a run; leave it out"
        )
    root, named = checkpoint_of(root)
    if named is not None and step not in (None, named):
        raise UserError(f"step={step} is not that of {path}; leave it out, or give {root}")
    return _load_run(root, step if named is None else named, dtype, ema=ema)


def _load_official(folder: HFFolder, dtype: DType | None) -> LoadedLM:
    model = _computing_in(dtype, folder.model())
    params = folder.params(model, jnp.float64 if dtype == "float64" else jnp.float32)
    tokenizer = official_tokenizer(folder.path)
    return LoadedLM(
        model,
        folder.loop(),
        folder.adapter.objective,
        jax.tree.map(jnp.asarray, params),
        tokenizer=tokenizer,
        template=tokenizer.chat_template if tokenizer else None,
        adapter=folder.adapter,
    )


def _load_run(root: Path, step: int | None, dtype: DType | None, *, ema: bool) -> LoadedLM:
    run = from_json(root / "config.json")
    tokenizer = tokenizer_of(root, run)
    template = tokenizer.chat_template if tokenizer else None
    if (stored := root / TEMPLATE_FILE).is_file():
        template = stored.read_bytes().decode()
    lm, device = FunctionalLM(run.model), jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), lm.shapes)
    params, step = restore_weights(root, run, lm, abstract, step=step, ema=ema)
    return LoadedLM(
        _computing_in(dtype, run.model),
        run.loop,
        run.objective,
        params,
        run=run,
        tokenizer=tokenizer,
        template=template,
        step=step,
        kv_file=root / "eval" / file_name(KIND, step, ema=ema),
    )


def _computing_in(dtype: DType | None, model: Model) -> Model:
    return model.model_copy(update={"dtype": dtype}) if dtype else model
