"""Runs that train an adapter: from a run or an official folder, killed and gone on, merged and exported."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import looplm
from looplm.checkpoint.seal import Seal, read_seal
from looplm.compile.collectives import collectives
from looplm.compile.compiled import compile_step
from looplm.compile.hlo import ARRAY
from looplm.config.schema import Mesh, Run
from looplm.sharding.mesh import build_mesh
from looplm.train.program import Program
from tests.system.test_kills import DYING

pytestmark = pytest.mark.slow
ADAPTER = json.dumps({"rank": 2, "dropout": 0.1, "loop_dropout": 0.25})
OURO = {"model.norm_placement": "sandwich", "model.norm_at_loop_end": True, "model.final_norm": False}


def seal_of(workdir: Path, step: int) -> Seal:
    return read_seal(workdir / "checkpoints" / str(step))


def adapting(source: Path, *settings: str) -> list[str]:
    words = [f"model=from:{source}", f"model.adapter={ADAPTER}", *settings]
    return [word for setting in words for word in ("--set", setting)]


@pytest.fixture(scope="module")
def adapted(finished_run, tiny_run, write_config, tmp_path_factory, command) -> Path:
    folder = tmp_path_factory.mktemp("adapted")
    config = write_config(folder, tiny_run(**{"model.dim": 32, "optim.ema_decay": 0.5}))
    shown = command("train", config, "--workdir", folder / "run", *adapting(finished_run))
    assert shown.code == 0, shown.stderr
    assert "training 544 of 15,457 parameters, with 0.01 MiB of optimizer state" in shown.stdout
    assert "were trained with model.adapter" not in shown.stdout
    return folder / "run"


def test_the_base_stays_to_the_bit_and_the_adapter_alone_has_a_state(adapted, finished_run) -> None:
    found, base = seal_of(adapted, 3), seal_of(finished_run, 3)
    adapter = {name for name in found.arrays["params"] if name not in base.arrays["params"]}
    assert adapter
    assert all(".adapter." in name for name in adapter)
    assert {name: kind for name, kind in found.arrays["params"].items() if name not in adapter} == base.arrays["params"]
    moments = [name for name in found.arrays["opt_state"] if ".mu." in name or ".nu." in name]
    assert {name.partition(".mu.")[2] or name.partition(".nu.")[2] for name in moments} == adapter
    b = looplm.load(adapted).params["core"]["block"]["layers"]["feed_forward"]["up"]["adapter"]["b"]
    assert np.any(b)


def test_its_average_is_that_of_the_adapter_beside_the_base(adapted) -> None:
    own, averaged = (looplm.load(adapted, ema=ema).params for ema in (False, True))
    same = jax.tree.map(np.array_equal, own, averaged)
    for path, is_same in jax.tree_util.tree_leaves_with_path(same):
        assert is_same == ("adapter" not in str(path)), path


def test_a_plain_run_does_not_begin_from_an_adapted_one(adapted, config_file, tiny_run, tmp_path, command) -> None:
    config = config_file(tiny_run(init_from=str(adapted)))
    shown = command("train", config, "--workdir", tmp_path / "run")
    assert shown.code == 2
    told = " ".join(shown.stderr.split())
    assert f"begin from what `looplm adapter merge {adapted} OUT` makes of it, or set model.adapter too" in told


def test_it_is_gone_on_with_after_a_kill_to_the_bit(
    finished_run, tiny_run: Callable[..., Run], config_file, program, tmp_path
) -> None:
    changes = {"num_steps": 8, "checkpoint.every_steps": 2, "optim.ema_decay": 0.9}
    config = config_file(tiny_run(**changes))

    def train(workdir: str, *phase: Any) -> int:
        entry = (DYING, *map(str, phase)) if phase else ("-m", "looplm")
        words = ("train", config, "--workdir", tmp_path / workdir, *adapting(finished_run))
        process = program.start(*words, devices=4, entry=entry)
        process.communicate()
        return process.returncode

    assert train("whole") == 0
    assert [train("killed", *phase) for phase in (("forward", 4), ("write", 2))] == [-signal.SIGKILL] * 2
    assert train("killed") == 0
    assert seal_of(tmp_path / "killed", 8).arrays == seal_of(tmp_path / "whole", 8).arrays


def test_it_begins_from_an_official_folder_and_ends_as_one(tiny_run, config_file, tmp_path, command) -> None:
    config = config_file(tiny_run(**OURO))
    for words in (
        ("train", config, "--workdir", tmp_path / "base"),
        ("convert", "export", tmp_path / "base", tmp_path / "hf"),
        ("train", config, "--workdir", tmp_path / "run", *adapting(tmp_path / "hf")),
        ("adapter", "merge", tmp_path / "run", tmp_path / "merged"),
        ("convert", "export", tmp_path / "merged", tmp_path / "whole"),
        ("adapter", "export", tmp_path / "run", tmp_path / "peft"),
        ("generate", tmp_path / "merged", "--prompt", "def", "--max-tokens", 4),
    ):
        shown = command(*words)
        assert shown.code == 0, shown.stderr
    found, expected = looplm.load(tmp_path / "whole"), looplm.load(tmp_path / "run")
    ids_BS = np.arange(12).reshape(1, 12)
    found, expected = (np.asarray(lm(ids_BS).logits(3)) for lm in (found, expected))
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_no_gradient_of_what_is_frozen_is_computed_or_sent(tiny_run: Callable[..., Run]) -> None:
    """In the compiled step: no product in the shape of a frozen matrix, no sum over devices that is as large as one."""
    sizes = {"model.dim": 48, "model.num_heads": 4, "model.hidden_dim": 104, "model.block_layers": 2}
    adapter = {"model.adapter": {"rank": 2, "targets": ["attention", "feed_forward"]}}

    def of(settings: dict) -> tuple[set[tuple[int, ...]], float, int]:
        """Shapes of all products, bytes that are sent to sum up, parameters that learn."""
        program = Program(tiny_run(**settings), build_mesh(Mesh(data=2, fsdp=4)))
        module = compile_step(program).module
        assert module is not None
        products = {
            tuple(int(size) for size in dims.split(","))
            for site in module.walk()
            if site.instruction.opcode in ("dot", "custom-call")
            for _, dims in ARRAY.findall(site.instruction.shape)
            if dims
        }
        found = collectives(module, program.mesh.shape)
        sums = [c.step_bytes for c in found if c.kind in ("all-reduce", "reduce-scatter")]
        return products, sum(sums), program.learning.size(program.lm.shapes)

    frozen = {(48, 104), (104, 48), (48, 48), (48, 384)}
    full, full_bytes, num_params = of(sizes)
    found, found_bytes, num_learning = of(sizes | adapter)
    assert full >= frozen
    assert not found & {shape[::order] for shape in frozen for order in (1, -1)}
    assert full_bytes > 4 * num_params > 20 * 4 * num_learning > 5 * found_bytes
