"""A checkpoint of 3 GB in Ouro-1.4B's shapes: memory, two steps of training, and the same bits again."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

import looplm
from looplm.checkpoint.adapters import find
from looplm.checkpoint.official_files import Tensor, write_tensors
from looplm.checkpoint.weight_files import stored_tensors
from looplm.config.load import override

CONFIG = dict(
    model_type="ouro", vocab_size=49152, hidden_size=2048, intermediate_size=5632, num_hidden_layers=24,
    num_attention_heads=16, num_key_value_heads=16, head_dim=128, rms_norm_eps=1e-6, rope_theta=1e6, total_ut_steps=4,
    max_position_embeddings=65536, tie_word_embeddings=False, torch_dtype="bfloat16",
)  # fmt: skip
SHARD_BYTES = 1_200_000_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("large") / "hf"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    adapter = find(CONFIG)
    rng = np.random.default_rng(0)

    def numbers(shape: tuple[int, ...]) -> np.ndarray:
        return rng.standard_normal(shape, np.float32) * np.float32(0.02)

    tensors = adapter.tensors(adapter.model(adapter.config.understand(CONFIG)))
    made = [Tensor(one.name, one.shape, "BF16", lambda one=one: numbers(one.shape)) for one in tensors]
    assert len(write_tensors(folder, made, SHARD_BYTES)) == 3
    return folder


def looplm_peak(*arguments: object) -> float:
    """Runs a command line and returns the most memory that it had, in bytes."""
    environment = os.environ | {"PYTHONPATH": str(Path(looplm.__file__).parents[1]), "XLA_FLAGS": ""}
    process = subprocess.Popen([sys.executable, "-m", "looplm", *map(str, arguments)], env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, arguments
    assert isinstance(usage, resource.struct_rusage)
    return usage.ru_maxrss * 1024


def two_steps(run_dir: Path, tiny_run, config_file) -> None:
    """Of the gate alone, on a task."""
    changes = {
        "data.train": {"kind": "p_hop", "seed": 1}, "data.validation": None, "data.sequence_length": 64,
        "data.batch_tokens": 64, "num_steps": 2, "optim.schedule.warmup_steps": 0, "objective": "gate",
    }  # fmt: skip
    config = config_file(override(tiny_run(), changes))
    looplm_peak("train", config, "--workdir", run_dir, "--set", f"model=from:{run_dir}")


@pytest.mark.slow
def test_three_gigabytes_go_in_and_out(folder, tiny_run, config_file, tmp_path):
    """And two steps between, where the machine holds the weights, their gradient and the moments: 23 GB and more."""
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    assert size > 2.8e9
    peak = looplm_peak("convert", "import", folder, tmp_path / "run")
    print(f"imported {size / 1e9:.2f} GB with a peak of {peak / 1e9:.2f} GB, {peak / size:.2f} of it")
    assert peak < 1.3 * size
    trains = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") > 40e9
    if trains:
        two_steps(tmp_path / "run", tiny_run, config_file)
    peak = looplm_peak("convert", "export", tmp_path / "run", tmp_path / "out", "--dtype", "bfloat16")
    print(f"exported with a peak of {peak / 1e9:.2f} GB")
    before, after = stored_tensors(folder), stored_tensors(tmp_path / "out")
    assert before.keys() == after.keys()
    differing = [name for name in sorted(before) if bits(before[name]) != bits(after[name])]
    assert differing == (["model.early_exit_gate.bias", "model.early_exit_gate.weight"] if trains else [])


def bits(tensor) -> bytes:
    with safe_open(tensor.file, framework="flax") as opened:
        return np.asarray(opened.get_tensor(tensor.name)).tobytes()
