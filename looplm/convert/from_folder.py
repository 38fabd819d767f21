"""The architecture of a folder, an official model's or a run's, so that no config has to write it a second time."""

import json
from collections.abc import Collection, Sequence
from pathlib import Path

from looplm.checkpoint.folder import checkpoint_of
from looplm.checkpoint.hf_folder import HFFolder, is_official
from looplm.config.load import from_json, given
from looplm.config.schema import Loop, Model
from looplm.errors import UserError

MODEL, PREFIX = "model", "from:"


def from_folder(path: str | Path, *, allow_keys: Collection[str] = ()) -> Model:
    """Reads the architecture of a model: `Run(model=from_folder("runs/ouro"), init_from="runs/ouro", ...)`.

    Args:
        path: a folder with an official config.json, a run directory, or one of its checkpoints (RUN/checkpoints/12).
        allow_keys: keys of an official config.json that looplm does not know, to pass over.

    Raises UserError for a folder that is neither, or a model that looplm does not compute.
    """
    return architecture(Path(path), allow_keys)[0]


def architecture(path: Path, allow_keys: Collection[str] = ()) -> tuple[Model, Loop]:
    """The model, and how it is looped. Raises as `from_folder`."""
    if is_official(path):
        folder = HFFolder(path, allow_keys)
        return folder.model(), folder.loop()
    root, step = checkpoint_of(path)
    run = from_json((root if step is None else root / "checkpoints" / str(step)) / "config.json")
    return run.model, run.loop


def expanded(overrides: Sequence[str], allow_keys: Collection[str] = ()) -> list[str]:
    """Overrides in which `model=from:DIR` is written out: the model of that folder, its number of loops, and its
    weights; what `--set` says of any of them itself goes before that.

    Raises UserError as `from_folder`.
    """
    found: list[str] = []
    named = given(overrides)
    for text in overrides:
        key, _, value = text.partition("=")
        if key.strip() != MODEL or not value.startswith(PREFIX):
            found.append(text)
            continue
        path = Path(value.removeprefix(PREFIX))
        if not path.name:
            raise UserError(f"--set {text!r} names no folder; give model=from:DIR")
        model, loop = architecture(path, allow_keys)
        # Field by field, so that an adapter of the config stays where the folder's model has none.
        fields = json.loads(model.model_dump_json())
        found += [
            f"{MODEL}.{key}={json.dumps(value)}" for key, value in fields.items() if (key, value) != ("adapter", None)
        ]
        if "loop.num_loops" not in named:
            found.append(f"loop.num_loops={loop.num_loops}")
        if "init_from" not in named:
            found.append(f"init_from={path}")
    return found
