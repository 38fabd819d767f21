"""Official folders to be spoilt, split and cast."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

from looplm.checkpoint.weight_files import INDEX

GOLDEN = Path(__file__).parents[1] / "golden"


def tensors_of(folder: Path) -> dict[str, np.ndarray]:
    return {
        name: value for file in sorted(folder.glob("model*.safetensors")) for name, value in load_file(file).items()
    }


def copy_of(name: str, target: Path, **config: object) -> Path:
    """The config and weights of a fixture, with keys of the config changed."""
    target.mkdir(parents=True)
    stored = json.loads((GOLDEN / name / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(stored | config))
    shutil.copy(GOLDEN / name / "model.safetensors", target)
    return target


def sharded(folder: Path, dtype: object, num_files: int = 3) -> Path:
    """Casts the weights and splits them over several files with an index."""
    stored = {name: value.astype(dtype) for name, value in tensors_of(folder).items()}
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for i in range(num_files):
        part = dict(list(stored.items())[i::num_files])
        file = f"model-{i + 1:05d}-of-{num_files:05d}.safetensors"
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    write_index(folder, weight_map)
    return folder


def write_index(folder: Path, weight_map: Mapping[str, str]) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": dict(weight_map)}))


BFLOAT16 = ml_dtypes.bfloat16
