"""Damaged checkpoints and disks that fail, as a run meets them."""

import io
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file, save_file

import looplm
from looplm.checkpoint.hf_folder import HFFolder
from looplm.checkpoint.seal import seal_bytes
from looplm.config.load import to_json
from looplm.config.schema import Mesh, Run
from looplm.data.formats.read import read_documents
from looplm.data.tokenizer import train_tokenizer
from looplm.data.writer import build_dataset
from looplm.errors import UserError
from looplm.metrics.sinks import read_metrics
from looplm.sharding.mesh import build_mesh
from looplm.train.batch import BatchLayout
from looplm.train.initial import check_source, weights_from
from looplm.train.program import Program
from looplm.train.state import TrainState
from looplm.train.trainer import Compiled, Trainer
from looplm.train.workdir import Workdir

CHANGES = {"num_steps": 9, "checkpoint.every_steps": 2}


@pytest.fixture(scope="module")
def whole(compile_once: None, tiny_run: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Steps 6, 8 and 9 are there."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    train(tiny_run(**CHANGES), workdir)
    return workdir


@pytest.fixture(scope="module", autouse=True)
def compile_once() -> Iterator[None]:
    """Runs of this module that compute the same share the compiled step."""
    original, known = Trainer.compiled.func, {}

    def compiled(trainer: Trainer) -> Compiled:
        run = trainer.run
        key = str((run.model, run.loop, run.optim, run.data, run.objective, run.num_steps))
        if key not in known:
            known[key] = original(trainer)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer.compiled, "func", compiled)
        yield


def train(run: Run, workdir: Path) -> str:
    """Returns what the console showed."""
    shown = io.StringIO()
    Trainer(run, workdir, Console(file=shown, soft_wrap=True)).train()
    return shown.getvalue()


def assert_same_weights(workdir: Path, expected: Path) -> None:
    jax.tree.map(np.testing.assert_array_equal, looplm.load(workdir).params, looplm.load(expected).params)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def test_a_resume_falls_back_says_why_and_ends_with_the_same_bits(
    whole: Path, tiny_run: Callable[..., Run], tmp_path: Path, command
) -> None:
    workdir = Path(shutil.copytree(whole, tmp_path / "run"))
    checkpoints = workdir / "checkpoints"
    flip(next(iter(sorted((checkpoints / "9/params/d").iterdir()))))
    (checkpoints / "8/seal.json").write_text("")
    (checkpoints / "10.writing").mkdir()

    code, stdout, stderr = command("checkpoint", "verify", workdir)
    assert code == 2
    assert [line.split()[:2] for line in stdout.splitlines()] == [["6", "right:"], ["8", "damaged:"], ["9", "damaged:"]]
    assert "[8, 9] of 3 checkpoints are damaged" in stderr
    assert looplm.load(workdir).step == 6

    shown = train(tiny_run(**CHANGES), workdir)
    assert f"removed {checkpoints / '10.writing'}" in shown
    assert "checkpoint 9 is passed over: params/d/" in shown
    assert ", which affects params " in shown
    assert "checkpoint 8 is passed over: seal.json is empty" in shown
    assert f"resuming {workdir} after step 6" in shown
    assert sorted(path.name for path in checkpoints.iterdir()) == ["6", "8", "8.damaged", "9", "9.damaged"]
    assert_same_weights(workdir, whole)
    losses = [[row["train/loss"] for row in read_metrics(folder / "metrics.jsonl")] for folder in (workdir, whole)]
    assert losses[0] == losses[1]

    code, stdout, _ = command("checkpoint", "rm", workdir, "--damaged", 6)
    assert code == 0
    assert [path.name for path in sorted(checkpoints.iterdir())] == ["8", "9"]


def test_the_list_and_the_last_one_that_verifies(whole: Path, tmp_path: Path, command) -> None:
    workdir = Path(shutil.copytree(whole, tmp_path / "run"))
    flip(workdir / "checkpoints/8/config.json")
    (workdir / "checkpoints/3.damaged").mkdir()
    (workdir / "checkpoints/4.writing").mkdir()
    (workdir / "checkpoints/6/seal.json").unlink()
    code, stdout, _ = command("checkpoint", "ls", workdir)
    assert code == 0
    assert [line.split()[0] for line in stdout.splitlines()] == ["6", "8", "9", "3.damaged", "4.writing"]
    assert "damaged: seal.json is missing" in stdout
    code, _, stderr = command("checkpoint", "rm", workdir, 9)
    assert code == 2
    assert "without [9] no checkpoint of" in stderr
    assert command("checkpoint", "rm", workdir, 6, 8).code == 0
    assert command("checkpoint", "verify", workdir).code == 0
    for words, message in (
        (("rm", workdir, 7), "holds no checkpoint of step [7]; it has [9]"),
        (("rm", workdir), "no step was named"),
        (("verify", workdir, "--step", 1), "holds no checkpoint of step 1; it has [9]"),
        (("ls", tmp_path), "is no folder; is"),
    ):
        code, _, stderr = command("checkpoint", *words)
        assert (code, message in stderr) == (2, True), stderr


def test_other_data_is_refused(whole: Path, tiny_run: Callable[..., Run], tmp_path: Path) -> None:
    workdir = Path(shutil.copytree(whole, tmp_path / "run"))
    for seal in workdir.glob("checkpoints/*/seal.json"):
        body = json.loads(seal.read_bytes())["seal"]
        seal.write_bytes(seal_bytes(body | {"data": "f" * 64}))
    with pytest.raises(UserError, match=r"9 in .* was trained on another dataset than .*manifest ffffffffffff, here "):
        train(tiny_run(**CHANGES), workdir)


@pytest.fixture
def disk(small_disk: Callable[[str], Path]) -> Path:
    """A folder on a disk of 8 MB."""
    return small_disk("8m")


def test_a_disk_that_is_full_for_a_while(disk: Path, whole: Path, tiny_run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Full from step 3 on, and until step 7: the run goes on, and the next save is the next try."""
    fill_while_stepping(disk, {4: True, 8: False}, monkeypatch)
    shown = train(tiny_run(**CHANGES), disk / "run")
    for step in (4, 6):
        assert f"checkpoint {step} was not saved: {disk}" in shown
    assert "MB are needed; training goes on, the next try is at step 6" in shown
    assert sorted(int(path.name) for path in (disk / "run/checkpoints").iterdir()) == [2, 8, 9]
    assert [row["step"] for row in read_metrics(disk / "run/metrics.jsonl")] == list(range(1, 10))
    assert_same_weights(disk / "run", whole)


def test_a_disk_that_stays_full(disk: Path, whole: Path, tiny_run, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """One line at the end; what was saved is gone on from when there is room."""
    with monkeypatch.context() as patch:
        fill_while_stepping(disk, {4: True}, patch)
        with pytest.raises(
            UserError, match=r"checkpoint 9 in .* could not be saved: .* the newest that is saved is 2;"
        ):
            train(tiny_run(**CHANGES), disk / "run")
    (disk / "filling").unlink(missing_ok=True)
    assert "after step 2" in train(tiny_run(**CHANGES), disk / "run")
    assert_same_weights(disk / "run", whole)


def fill_while_stepping(disk: Path, full: dict[int, bool], patch: pytest.MonkeyPatch) -> None:
    """Fills the disk, or makes room, as the batch of a step is taken, during the step before."""
    original, steps = BatchLayout.place, iter(range(1, 100))

    def place(*arguments: object) -> object:
        match full.get(next(steps)):
            case True:
                while not (disk / "run/checkpoints/2").exists():
                    time.sleep(0.01)
                with suppress(OSError):  # a save that is under way may have taken the last of it
                    (disk / "filling").write_bytes(bytes(shutil.disk_usage(disk).free))
            case False:
                (disk / "filling").unlink(missing_ok=True)
        return original(*arguments)

    patch.setattr(BatchLayout, "place", place)


def test_a_workdir_without_its_config_is_told_where_it_is(whole: Path, tiny_run, tmp_path: Path) -> None:
    workdir = Path(shutil.copytree(whole, tmp_path / "run"))
    (workdir / "config.json").unlink()
    with pytest.raises(UserError, match=r"put back the one that is in every checkpoint .*/<step>/config.json"):
        Workdir(workdir).check_ours(tiny_run(**CHANGES))
    shutil.copy(workdir / "checkpoints/9/config.json", workdir)
    Workdir(workdir).check_ours(tiny_run(**CHANGES))


def begin(run: Run, workdir: Path) -> tuple[TrainState, str]:
    """The state that a run begins with, and what the console showed."""
    shown = io.StringIO()
    state, step = Trainer(run, workdir, Console(file=shown, soft_wrap=True)).saving.restore_or_create()
    assert step == 0
    return state, shown.getvalue()


def test_a_run_starts_from_the_weights_of_another_and_nothing_else(whole: Path, tiny_run, tmp_path: Path) -> None:
    run = tiny_run(**CHANGES, init_from=str(whole))
    state, shown = begin(run, tmp_path / "run")
    assert shown == f"starting from the weights of {whole} after step 9\n"
    jax.tree.map(np.testing.assert_array_equal, state.params, looplm.load(whole).params)
    fresh, _ = begin(tiny_run(**CHANGES), tmp_path / "fresh")
    jax.tree.map(np.testing.assert_array_equal, state.opt_state, fresh.opt_state)
    wanted = Trainer(run, tmp_path / "run", Console()).program.abstract_state()
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == jax.tree.map(lambda leaf: leaf.sharding, wanted)


def test_a_run_starts_from_one_checkpoint_of_another(whole: Path, tiny_run, tmp_path: Path) -> None:
    state, shown = begin(tiny_run(**CHANGES, init_from=str(whole / "checkpoints/6")), tmp_path / "run")
    assert shown == f"starting from the weights of {whole} after step 6\n"
    jax.tree.map(np.testing.assert_array_equal, state.params, looplm.load(whole, step=6).params)
    alone = Path(shutil.copytree(whole / "checkpoints/8", tmp_path / "kept/checkpoints/8"))
    _, shown = begin(tiny_run(**CHANGES, init_from=str(alone)), tmp_path / "run")
    assert shown == f"starting from the weights of {tmp_path / 'kept'} after step 8\n"


def test_a_source_without_weights_is_refused_before_anything_is_compiled(whole: Path, tiny_run, tmp_path: Path) -> None:
    def refused(source: Path, reason: str) -> None:
        with pytest.raises(UserError, match=reason):
            Trainer(tiny_run(**CHANGES, init_from=str(source)), tmp_path / "run", Console())  # it compiles in train()

    refused(whole / "checkpoints/7", r"checkpoints holds no checkpoint of step 7; it has \[6, 8, 9\]")
    copy = Path(shutil.copytree(whole, tmp_path / "copy"))
    for step in (6, 8):
        (copy / f"checkpoints/{step}/seal.json").unlink()
    refused(copy / "checkpoints/8", r"verifies \(8: seal.json is missing\); use another one: \[6, 9\]")
    Trainer(tiny_run(**CHANGES, init_from=str(copy)), tmp_path / "run", Console())
    (copy / "checkpoints/9/seal.json").write_text("{}")
    refused(copy, r"no checkpoint of .*copy/checkpoints that was asked for verifies \(9: .*; 8: .*; 6: .*\)")
    shutil.rmtree(copy / "checkpoints")
    refused(copy, r"copy/checkpoints holds no checkpoint yet")
    assert not (tmp_path / "run").exists()


def test_a_resume_needs_what_it_began_with_no_longer(whole: Path, tiny_run, tmp_path: Path) -> None:
    run = tiny_run(**CHANGES, init_from=str(tmp_path / "gone"))
    workdir = Path(shutil.copytree(whole, tmp_path / "run"))
    (workdir / "config.json").write_text(to_json(run))
    _, step = Trainer(run, workdir, Console()).saving.restore_or_create()
    assert step == 9


def test_weights_that_do_not_fit_are_listed_after_the_settings(whole: Path, tiny_run, tmp_path: Path) -> None:
    told = (
        r"for: model.hidden_dim=32 \(here 64\); .*up.kernel is float32\[1, 16, 32\] there and float32\[1, 16, 64\] here"
    )
    with pytest.raises(UserError, match=told):
        Trainer(tiny_run(**{"init_from": str(whole), "model.hidden_dim": 64}), tmp_path / "run", Console())
    with pytest.raises(UserError, match="init_from=nowhere is neither a run directory nor a model folder"):
        Trainer(tiny_run(init_from="nowhere"), tmp_path / "run", Console())
    _, shown = begin(tiny_run(**{"init_from": str(whole), "model.rope.theta": 5.0}), tmp_path / "run")
    assert "were trained with model.rope.theta=10000.0 (here 5.0)\n" in shown


def test_weights_of_a_run_with_another_tokenizer_are_refused(whole: Path, tiny_run, texts, tmp_path: Path) -> None:
    lines = (str(document.content).upper() for document in read_documents(texts))
    tokenizer = train_tokenizer(lines, tiny_run().model.vocab_size, tmp_path)
    build_dataset(texts, tokenizer, tmp_path / "data", validation_fraction=0.2, num_workers=1)
    data = {f"data.{split}": str(tmp_path / "data" / split) for split in ("train", "validation")}
    with pytest.raises(UserError, match=r"init_from=.* was trained with another tokenizer than .*/data/train/"):
        Trainer(tiny_run(**CHANGES, **data, init_from=str(whole)), tmp_path / "run", Console())
    (bare := tmp_path / "bare").mkdir()
    shutil.copy(whole / "config.json", bare)  # a run on ready-made tokens has no tokenizer
    (bare / "checkpoints").symlink_to(whole / "checkpoints")
    Trainer(tiny_run(**CHANGES, **data, init_from=str(bare)), tmp_path / "run", Console())
    assert not (tmp_path / "run").exists()


def test_a_run_starts_from_an_official_model(tiny_run) -> None:
    golden = Path(__file__).parents[1] / "golden" / "ouro_a"
    official = looplm.load(golden)
    run = tiny_run(**{f"model.{key}": value for key, value in official.model.model_dump().items()})
    program = Program(run, build_mesh(Mesh(fsdp=4), jax.devices()[:4]))
    check_source(golden, program, None)
    params = weights_from(golden, program, lambda line: None)
    jax.tree.map(np.testing.assert_array_equal, params, official.params)
    wanted = program.abstract_state().params
    assert jax.tree.map(lambda leaf: leaf.sharding, params) == jax.tree.map(lambda leaf: leaf.sharding, wanted)


def test_an_official_model_is_refused_by_the_headers_of_its_files(tiny_run, tmp_path: Path) -> None:
    golden = Path(__file__).parents[1] / "golden" / "ouro_a"
    model = HFFolder(golden).model()
    program = Program(
        tiny_run(**{f"model.{key}": value for key, value in model.model_dump().items()}), build_mesh(Mesh())
    )
    tensors = load_file(golden / "model.safetensors")
    shutil.copy(golden / "config.json", tmp_path)
    name = "model.norm.weight"
    for changed, reason in (
        ({name: tensors[name][:-1]}, r"model.norm.weight has shape \(\d+,\), but config.json asks for \(\d+,\)"),
        ({"spare": tensors[name]}, r"missing tensors none, unknown tensors \['spare'\]"),
    ):
        save_file(tensors | changed, tmp_path / "model.safetensors")
        with pytest.raises(UserError, match=reason):
            check_source(tmp_path, program, None)


def test_an_unknown_key_of_an_official_model_may_be_allowed(tiny_run, tmp_path: Path) -> None:
    golden = Path(__file__).parents[1] / "golden" / "ouro_a"
    shutil.copy(golden / "model.safetensors", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(json.loads((golden / "config.json").read_text()) | {"trick": 1}))
    model = {f"model.{key}": value for key, value in HFFolder(golden).model().model_dump().items()}
    with pytest.raises(UserError, match=r"unknown key trick, .*--allow-key trick"):
        check_source(tmp_path, Program(tiny_run(**model), build_mesh(Mesh())), None)
    check_source(tmp_path, Program(tiny_run(**model, init_allow_keys=("trick",)), build_mesh(Mesh())), None)
