"""The first weights of a run from elsewhere: another run, or an official model. Nothing but weights is taken.

A run is given by its directory, which means its newest checkpoint that verifies, or by the folder of one checkpoint.
"""

import json
from collections.abc import Callable
from itertools import chain, combinations
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp

from looplm.checkpoint.folder import checkpoint_of
from looplm.checkpoint.hf_folder import HFFolder, is_official
from looplm.checkpoint.reader import CheckpointReader
from looplm.checkpoint.tree import Kind, differences, kinds
from looplm.config.load import changes, from_json, leaves
from looplm.config.schema import Model, Resize, Run
from looplm.data.tokenizer import Tokenizer
from looplm.data.tokenizer.official import tokenizer_of
from looplm.errors import UserError
from looplm.model.functional import FunctionalLM, Params
from looplm.model.subset import Subset
from looplm.optim.learning import declared
from looplm.train.program import Program
from looplm.train.resize import Needs, as_stored, fitted, needs_of, resized


def check_source(path: Path, program: Program, tokenizer: Tokenizer | None) -> None:
    """Raises UserError unless the folder is of a run or an official model with the arrays that the program wants, and
    a run's tokens are those of `tokenizer`, if both have one. Reads seals and headers alone: damage to the values shows
    when they are read."""
    run, (folder, step) = program.run, _checkpoints_of(path)
    if step is None and not (path / "config.json").is_file():
        raise UserError(
            f"init_from={path} is neither a run directory nor a model folder (it has no config.json); "
            "give one of them, or null"
        )
    stored, theirs = _stored(path, run), None
    if not is_official(path):
        theirs = tokenizer_of(folder.parent, from_json(path / "config.json"))
    wanted = kinds(_taken(program, stored).only(program.lm.shapes))
    if found := differences(fitted(stored, program.lm, run.init_resize), wanted):
        told = "; ".join(part for part in (", ".join(_settings(path, run)), found) if part)
        raise UserError(
            f"init_from={path} holds other weights than this config asks for: {told}; give its values, or "
            f"{_remedy(path, stored, program)}init_from=null"
        )
    if is_official(path):
        official = _official(path, run)
        official.check(official.model())
    other_rows = "vocabulary" in run.init_resize
    if theirs and not other_rows and theirs.eos_id >= 0 and tokenizer and theirs.fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"init_from={path} was trained with another tokenizer than {tokenizer.path}; "
            f"build the datasets with {theirs.path}, or give init_from=null"
        )


def weights_from(path: Path, program: Program, report: Callable[[str], None]) -> Params:
    """The weights with the shardings of the program; what the two configs compute differently with them is reported."""
    stored = _stored(path, program.run)
    taken = _taken(program, stored)
    abstract = taken.only(program.lm.abstract(program.mesh))
    if is_official(path):
        official = _official(path, program.run)
        params = official.params(official.model(), jnp.float32)
        report(f"starting from the weights of {path}")
    else:
        folder, step = _checkpoints_of(path)
        as_it_is = as_stored(abstract, stored, program.mesh)
        restored = CheckpointReader(folder, report).restore({"params": as_it_is}, step=step)
        params = restored.trees["params"]
        report(f"starting from the weights of {folder.parent} after step {restored.seal.step}")
    if notes := _settings(path, program.run):
        report(f"note: the weights of {path} were trained with {', '.join(notes)}")
    params = jax.tree.map(_placed, params, abstract, taken.only(needs_of(program.lm)))
    return taken.put(params, program.create_params(but_for=taken))


def _taken(program: Program, stored: dict[str, Kind]) -> Subset:
    """The parameters that come from elsewhere: all but an adapter that is new."""
    parts = declared(program.lm)
    adapter = {name for name, variable in parts.items() if variable.group == "adapter"}
    return Subset.of(program.lm, set(parts) if adapter & set(stored) else set(parts) - adapter)


def _checkpoints_of(path: Path) -> tuple[Path, int | None]:
    """The folder of checkpoints and which of them."""
    root, step = checkpoint_of(path)
    return root / "checkpoints", step


def _official(path: Path, run: Run) -> HFFolder:
    return HFFolder(path, run.init_allow_keys)


def _model_of(path: Path, run: Run) -> Model:
    return _official(path, run).model() if is_official(path) else from_json(path / "config.json").model


def _stored(path: Path, run: Run) -> dict[str, Kind]:
    """The arrays that the folder holds. Reads seals and headers alone."""
    if is_official(path):
        return kinds(FunctionalLM(_model_of(path, run)).shapes)
    folder, step = _checkpoints_of(path)
    return CheckpointReader(folder).newest_seal(step).kinds("params")


def _remedy(path: Path, stored: dict[str, Kind], program: Program) -> str:
    """What makes them fit, where that is all."""
    if _model_of(path, program.run).adapter is not None and program.run.model.adapter is None:
        return f"begin from what `looplm adapter merge {path} OUT` makes of it, or set model.adapter too, or "
    wanted = kinds(_taken(program, stored).only(program.lm.shapes))
    every = get_args(Resize)
    for given in chain.from_iterable(combinations(every, count + 1) for count in range(len(every))):
        if not differences(fitted(stored, program.lm, given), wanted):
            return f"init_resize={json.dumps(given)} to fit them, or "
    return ""


def _placed(value: Any, leaf: jax.ShapeDtypeStruct, needs: Needs) -> jax.Array:
    """Where it belongs, and of the size that the run has."""
    value = resized(value, leaf.shape, needs)
    if isinstance(value, jax.Array):
        return value  # restored there
    assert leaf.sharding is not None, "of an abstract state"
    return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: value[index])


def _settings(path: Path, run: Run) -> list[str]:
    """Settings of the model that differ, but for those of an adapter that is new."""
    theirs = _model_of(path, run)
    if theirs.adapter is None:
        theirs = theirs.model_copy(update={"adapter": run.model.adapter})
    found = changes(leaves(run.model_copy(update={"model": theirs})), leaves(run))
    return [f"{key}={theirs!r} (here {ours!r})" for key, (theirs, ours) in found.items()]
