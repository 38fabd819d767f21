"""Folders that are no sound model: one line that names what is wrong, and nothing is written."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.convert.folders import copy_of, sharded, tensors_of, write_index


def spoil_shard(folder: Path) -> None:
    sharded(folder, np.float32)
    (folder / "model-00002-of-00003.safetensors").unlink()


def spoil_shape(folder: Path) -> None:
    stored = tensors_of(folder)
    save_file(stored | {"model.norm.weight": np.ones(63, np.float32)}, folder / "model.safetensors")


def spoil_extra(folder: Path) -> None:
    save_file(tensors_of(folder) | {"model.extra.bias": np.ones(3, np.float32)}, folder / "model.safetensors")


def spoil_length(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def spoil_values(folder: Path) -> None:
    stored = tensors_of(folder)
    value = stored["model.layers.3.mlp.down_proj.weight"].copy()
    value[0, :2] = np.nan
    save_file(stored | {"model.layers.3.mlp.down_proj.weight": value}, folder / "model.safetensors")


def spoil_kind(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "gpt9"}))


def index_to(place: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        write_index(folder, dict.fromkeys(tensors_of(folder), place))

    return spoil


CASES = {
    "shard": (spoil_shard, r"hf lacks model-00002-of-00003.safetensors, which .*index.json names; download the rest"),
    "shape": (spoil_shape, r"model\.norm\.weight has shape \(63,\), but config\.json asks for \(64,\)"),
    "extra": (spoil_extra, r"unknown tensors \['model\.extra\.bias'\]; the files do not belong"),
    "length": (spoil_length, r"model\.safetensors is no sound safetensors file .*; download it again"),
    "values": (spoil_values, r"down_proj\.weight holds 2 values that are no finite numbers"),
    "kind": (spoil_kind, r"'gpt9' is not known; looplm reads ouro, "),
    "above": (index_to("../model.safetensors"), r"names '\.\./model\.safetensors', which is no file of its folder"),
    "root": (index_to("/etc/passwd"), r"names '/etc/passwd', which is no file of its folder"),
    "dots": (index_to(".."), r"names '\.\.', which is no file of its folder"),
}


@pytest.mark.parametrize("name", CASES)
def test_one_line_and_nothing_written(name, tmp_path, command):
    spoil, message = CASES[name]
    folder = copy_of("llama_a", tmp_path / "hf")
    spoil(folder)
    shown = command("convert", "import", folder, tmp_path / "run")
    assert shown.code == 2
    assert shown.stderr.count("\n") == 1, shown.stderr
    assert re.search(message, shown.stderr), shown.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_a_folder_that_is_none(tmp_path, command):
    shown = command("convert", "import", tmp_path / "nothing", tmp_path / "run")
    assert shown.code == 2
    assert "is " in shown.stderr
    assert "a model folder?" in shown.stderr
    assert not (tmp_path / "run").exists()


def test_a_place_that_cannot_be_written(tmp_path, command):
    folder = copy_of("llama_a", tmp_path / "hf")
    (tmp_path / "file").write_text("")
    shown = command("convert", "import", folder, tmp_path / "file" / "run")
    assert (shown.code, shown.stderr.count("\n")) == (2, 1)
    assert "cannot be written: Not a directory; give another folder" in shown.stderr
