"""The first weights of a run from elsewhere: another run, or an official model. Nothing but weights is taken."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from looplm.checkpoint.digest import named_leaves
from looplm.checkpoint.hf_folder import HFFolder, is_official
from looplm.checkpoint.reader import CheckpointReader
from looplm.checkpoint.tree import Kind, differences
from looplm.config.load import from_json
from looplm.config.schema import Model
from looplm.data.tokenizer import Tokenizer
from looplm.errors import UserError
from looplm.model.functional import FunctionalLM, Params
from looplm.train.program import Program


def check_source(path: Path, program: Program, tokenizer: Tokenizer | None) -> None:
    """Raises UserError unless the folder is a run directory or an official model with the arrays that the program
    wants, and a run's tokens are those of `tokenizer`, if both have one; compares the configs and reads no weights."""
    if not (path / "config.json").is_file():
        raise UserError(
            f"init_from={path} is neither a run directory nor a model folder (it has no config.json); "
            "give one of them, or null"
        )
    stored, wanted = (
        {name: Kind(leaf.shape, str(leaf.dtype)) for name, leaf in named_leaves(tree).items()}
        for tree in (FunctionalLM(_model_of(path)).shapes, program.lm.shapes)
    )
    if found := differences(stored, wanted):
        raise UserError(f"init_from={path} holds other weights than this config asks for: {found}")
    theirs = None if is_official(path) else Tokenizer.find(path)
    if theirs and tokenizer and theirs.fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"init_from={path} was trained with another tokenizer than {tokenizer.path}; "
            f"build the datasets with {theirs.path}, or give init_from=null"
        )


def weights_from(path: Path, program: Program, report: Callable[[str], None]) -> Params:
    """The weights with the shardings of the program; what the two configs compute differently with them is reported."""
    abstract = program.lm.abstract(program.mesh)
    if is_official(path):
        params = jax.tree.map(_place, HFFolder(path).params(_model_of(path), jnp.float32), abstract)
        report(f"starting from the weights of {path}")
    else:
        restored = CheckpointReader(path / "checkpoints", report).restore({"params": abstract})
        params = restored.trees["params"]
        report(f"starting from the weights of {path} after step {restored.seal.step}")
    if notes := _settings(_model_of(path), program.run.model):
        report(f"note: the weights of {path} were trained with {', '.join(notes)}")
    return params


def _model_of(path: Path) -> Model:
    return HFFolder(path).model() if is_official(path) else from_json(path / "config.json").model


def _place(value: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    assert leaf.sharding is not None, "of an abstract state"
    return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: value[index])


def _settings(theirs: Model, ours: Model) -> list[str]:
    """Settings of the model that differ, though the weights fit."""
    a, b = theirs.model_dump(mode="json"), ours.model_dump(mode="json")
    return [f"model.{key}={a[key]!r} (here {b[key]!r})" for key in a if a[key] != b.get(key)]
