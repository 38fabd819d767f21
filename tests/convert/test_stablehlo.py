"""A program and its weights run in a process without looplm, and give what the model gives."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax import export
from safetensors.numpy import load_file

import looplm
from tests.convert.folders import GOLDEN

pytest.importorskip("flatbuffers", reason="pip install 'looplm[edge]'")

ELSEWHERE = """
import sys
import numpy as np
from load import logits
for batch in (1, 2, 3):
    np.save(f"{batch}.npy", logits(np.load("ids.npy")[:batch]))
assert "looplm" not in sys.modules
"""


def elsewhere(folder, ids):
    """Return the logits of the first 1, 2 and 3 rows."""
    np.save(folder / "ids.npy", ids)
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "XLA_FLAGS")}
    subprocess.run([sys.executable, "-c", ELSEWHERE], cwd=folder, env=environment, check=True)
    return [np.load(folder / f"{batch}.npy") for batch in (1, 2, 3)]


@pytest.mark.parametrize(("name", "depth"), [("nanbeige_a", 3), ("mixtral_a", None)])
def test_a_process_without_looplm_gives_the_logits_of_the_model(name, depth, command, tmp_path):
    out = tmp_path / "program"
    loops = () if depth is None else ("--loops", depth)
    shown = command("convert", "stablehlo", GOLDEN / name, out, "--length", 19, *loops)
    assert shown.code == 0, shown.stderr
    lm = looplm.load(GOLDEN / name)
    ids = np.random.default_rng(0).integers(0, lm.model.vocab_size, (3, 17)).astype(np.int32)
    wanted = jax.jit(lambda ids: lm(ids, depth).logits(depth or lm.loop.num_loops))(ids)
    for made in elsewhere(out, ids):
        np.testing.assert_allclose(made, wanted[: len(made)], atol=1e-5)
    program = export.deserialize(bytearray((out / "model.stablehlo").read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")


def test_halves_are_stored_as_halves(command, tmp_path):
    for dtype in ("float32", "bfloat16"):
        options = ("--length", 8, "--dtype", dtype, "--platforms", "cpu")
        assert command("convert", "stablehlo", GOLDEN / "nanbeige_a", tmp_path / dtype, *options).code == 0
    sizes = [(tmp_path / dtype / "model.safetensors").stat().st_size for dtype in ("bfloat16", "float32")]
    assert sizes[0] < 0.6 * sizes[1]
    ids, logits = np.arange(24, dtype=np.int32).reshape(3, 8), {}
    for dtype, folder in ((dtype, tmp_path / dtype) for dtype in ("bfloat16", "float32")):
        program = export.deserialize(bytearray((folder / "model.stablehlo").read_bytes()))
        logits[dtype] = program.call(load_file(folder / "model.safetensors"), ids)
    half, full = logits["bfloat16"], logits["float32"]
    assert half.dtype == np.float32
    np.testing.assert_allclose(half, full, atol=0.1)
    assert np.any(half != full)


def test_what_no_program_can_be_made_of_is_refused(command, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "kept").write_text("kept")
    for folder, target, options, told in (
        ("nanbeige_a", "out", ("--platforms", "cpu,cpux"), "--platforms cpux is not known; use one of cpu, cuda, tpu"),
        ("nanbeige_a", "out", ("--dtype", "int8"), "--dtype int8 is not known"),
        ("nanbeige_a", "out", ("--loops", 0), "--loops 0"),
        ("nanbeige_a", "there", (), "there is there already"),
        ("trm_a", "out", (), "model.front"),
        ("mhc_a", "out", (), "config.json"),
    ):
        shown = command("convert", "stablehlo", GOLDEN / folder, tmp_path / target, *options)
        assert shown.code == 2, (folder, options)
        assert told in shown.stderr.replace("\n", " "), shown.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
