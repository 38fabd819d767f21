"""A checkpoint of 3 GB in Ouro-1.4B's shapes: memory, two steps of training, and the same bits again.

python -m pytest -s -m slow tests/convert/test_large.py                     prints what docs/benchmarks.md says
"""

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

CONFIG = dict(
    model_type="ouro", vocab_size=49152, hidden_size=2048, intermediate_size=5632, num_hidden_layers=24,
    num_attention_heads=16, num_key_value_heads=16, head_dim=128, rms_norm_eps=1e-6, rope_theta=1e6, total_ut_steps=4,
    max_position_embeddings=65536, tie_word_embeddings=False, torch_dtype="bfloat16",
)  # fmt: skip
SHARD_BYTES = 1_200_000_000
MACHINE_BYTES, TRAINING_BYTES = 20e9, 14e9
"""Of a machine that trains it, and what that takes at most."""


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


@pytest.fixture(scope="module")
def imported(folder) -> Path:
    size, run = size_of(folder), folder.parent / "run"
    peak = looplm_peak("convert", "import", folder, run)
    print(f"imported {size / 1e9:.2f} GB with a peak of {peak / 1e9:.2f} GB, {peak / size:.2f} of it")
    assert size > 2.8e9
    assert peak < 1.3 * size
    return run


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def two_steps(config: str, imported: Path, workdir: Path, *settings: str) -> None:
    """On a task, with the weights in float32 and a state for what learns alone."""
    if os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") < MACHINE_BYTES:
        pytest.skip(f"needs {MACHINE_BYTES / 1e9:.0f} GB of memory")
    task = (
        'data.train={"kind": "p_hop", "seed": 1}', "data.validation=null", "data.sequence_length=64",
        "data.batch_tokens=64", "num_steps=2", "optim.schedule.warmup_steps=0", "optim.schedule.final_fraction=1.0",
    )  # fmt: skip
    given = [word for setting in (f"model=from:{imported}", *task, *settings) for word in ("--set", setting)]
    peak = looplm_peak("train", config, "--workdir", workdir, *given)
    print(
        f"two steps of {config} with a peak of {peak / 1e9:.2f} GB, {peak / size_of(imported.parent / 'hf'):.2f} of it"
    )
    assert peak < TRAINING_BYTES


def exported(run: Path, folder: Path) -> set[str]:
    """The names of the tensors that are other bits than they were."""
    out = run.parent / "out"
    peak = looplm_peak("convert", "export", run, out, "--dtype", "bfloat16")
    print(f"exported {run.name} with a peak of {peak / 1e9:.2f} GB")
    before, after = stored_tensors(folder), stored_tensors(out)
    assert before.keys() == after.keys()
    return {name for name in before if bits(before[name]) != bits(after[name])}


@pytest.mark.slow
def test_the_gate_learns_two_steps_in_three_gigabytes(folder, imported, tmp_path):
    two_steps("finetune/gate", imported, tmp_path / "gate")
    assert exported(tmp_path / "gate", folder) == {"model.early_exit_gate.bias", "model.early_exit_gate.weight"}


@pytest.mark.slow
def test_an_adapter_learns_two_steps_and_is_merged(folder, imported, tmp_path):
    two_steps(
        "finetune/lora", imported, tmp_path / "lora", 'model.adapter.targets=["query"]', "optim.learning_rate=0.05"
    )
    peak = looplm_peak("adapter", "merge", tmp_path / "lora", tmp_path / "merged")
    print(f"merged with a peak of {peak / 1e9:.2f} GB")
    names = {f"model.layers.{layer}.self_attn.q_proj.weight" for layer in range(CONFIG["num_hidden_layers"])}
    assert exported(tmp_path / "merged", folder) == names


def bits(tensor) -> bytes:
    with safe_open(tensor.file, framework="flax") as opened:
        return np.asarray(opened.get_tensor(tensor.name)).tobytes()
