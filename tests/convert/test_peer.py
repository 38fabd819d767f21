"""Exported folders give equal logits in the authors' code: `pytest -m peer tests/convert`.

LOOPLM_PEER is a Python with torch and transformers (this one when it is not set); LOOPLM_PEER_CODE a folder with the
packages `ouro` and `raven` of the authors' files, which need transformers 4.54.1 (LOOPLM_PEER_PATH: where that is).
"""

import io
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console

import looplm
from looplm.convert import import_folder as importing
from looplm.convert.export_folder import export_run
from looplm.convert.peft_folder import export_adapter
from tests.checkpoint.folders import folders
from tests.convert.adapters import adapter_run

SCRIPT = Path(__file__).parents[2] / "tools" / "official_logits.py"
PACKAGES = {"ouro": "ouro", "huginn": "raven"}
"""By the first part of a fixture's name."""


@pytest.mark.peer
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "folder",
    folders("ouro", "huginn", "llama", "qwen3", "olmo2", "mixtral", "olmoe", "qwen3moe"),
    ids=lambda folder: folder.name,
)
def test_an_exported_folder_gives_equal_logits_in_the_authors_code(folder, dtype, tmp_path, monkeypatch):
    system = folder.name.partition("_")[0]
    code, environment = os.environ.get("LOOPLM_PEER_CODE"), dict(os.environ)
    if system in PACKAGES:
        if code is None:
            pytest.skip("needs LOOPLM_PEER_CODE")
        environment["PYTHONPATH"] = os.environ.get("LOOPLM_PEER_PATH", "")
    monkeypatch.setattr(importing, "LOGITS_BYTES", -1)
    console = Console(file=io.StringIO())
    importing.import_folder(folder, tmp_path / "run", console)
    export_run(tmp_path / "run", tmp_path / "out", console, dtype=dtype)
    ids_BS = np.load(folder / "io.npz")["input_ids"]
    np.save(tmp_path / "ids.npy", ids_BS)
    words = [SCRIPT, tmp_path / "out", tmp_path / "ids.npy", tmp_path / "logits.npy"]
    words += ["--code", Path(code or "") / PACKAGES[system]] if system in PACKAGES else []
    python = os.environ.get("LOOPLM_PEER", sys.executable)
    subprocess.run([python, *map(str, words)], check=True, env=environment)
    lm = looplm.load(tmp_path / "out")
    state = np.zeros((*ids_BS.shape, lm.model.dim), np.float32) if system == "huginn" else None
    ours = jax.jit(lambda ids_BS: lm(ids_BS, initial_state=state).logits(lm.loop.num_loops))(ids_BS)
    np.testing.assert_allclose(ours, np.load(tmp_path / "logits.npy"), atol=5e-5)


@pytest.mark.peer
@pytest.mark.parametrize("folder", folders("ouro", "llama", "qwen3", "olmo2"), ids=lambda folder: folder.name)
@pytest.mark.parametrize("stabilised", [False, True])
def test_an_exported_adapter_gives_equal_logits_in_peft(folder, stabilised, tmp_path):
    """Beside the official base model. LOOPLM_PEER is then a Python that has peft too."""
    system = folder.name.partition("_")[0]
    code, environment = os.environ.get("LOOPLM_PEER_CODE"), dict(os.environ)
    if system in PACKAGES and code is None:
        pytest.skip("needs LOOPLM_PEER_CODE")
    run = adapter_run(folder, tmp_path / "run", rank_stabilised=stabilised)
    export_adapter(run, tmp_path / "peft", Console(file=io.StringIO()))
    ids_BS = np.load(folder / "io.npz")["input_ids"]
    np.save(tmp_path / "ids.npy", ids_BS)
    words = [SCRIPT, folder, tmp_path / "ids.npy", tmp_path / "logits.npy", "--adapter", tmp_path / "peft"]
    words += ["--code", Path(code or "") / PACKAGES[system]] if system in PACKAGES else []
    python = os.environ.get("LOOPLM_PEER", sys.executable)
    subprocess.run([python, *map(str, words)], check=True, env=environment)
    lm = looplm.load(run)
    ours = jax.jit(lambda ids_BS: lm(ids_BS).logits(lm.loop.num_loops))(ids_BS)
    np.testing.assert_allclose(ours, np.load(tmp_path / "logits.npy"), atol=5e-5)


@pytest.mark.peer
def test_the_library_itself_is_asked_where_it_is_installed(tmp_path, command):
    """In a Python that has torch and transformers beside looplm."""
    pytest.importorskip("torch")
    shown = command("convert", "import", "--reference", folders("qwen3")[0], tmp_path / "run")
    assert shown.code == 0, shown.stderr
    (line,) = [line for line in shown.stdout.splitlines() if line.endswith("of the library transformers")]
    assert float(line.split("differ by ")[1].split()[0]) < 5e-5
