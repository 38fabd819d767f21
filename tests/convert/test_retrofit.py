"""A cut model at one loop is the original with the kept layers alone: written as a folder of its own, and loaded."""

import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import save_file

import looplm
from looplm.config.load import from_json
from looplm.convert.import_folder import LONGEST
from looplm.convert.parity import fixed_ids
from looplm.convert.retrofit import stages, write
from looplm.convert.retrofit.angular import angular_distances, nearest
from looplm.convert.retrofit.cut import Ranges, averaged, evenly, num_chosen
from looplm.convert.retrofit.relaxed import nearest_of_rank
from looplm.convert.retrofit.source import open_source
from looplm.convert.retrofit.stages import plain_stack, run_stages
from looplm.convert.retrofit.write import Wish, retrofit
from looplm.errors import UserError
from tests.checkpoint.folders import config_of
from tests.convert.folders import GOLDEN, copy_of, tensors_of

ANGULAR = Wish(None, "0:4", None, 4, "concat", "angular", 3, None)
LAYER = re.compile(r"model\.layers\.(\d+)\.(.*)")


def cut_folder(name: str, target: Path, kept: list[tuple[int, ...]]) -> Path:
    """The fixture with these layers alone, each the mean of some: what its authors' code would be given."""
    tensors, target = tensors_of(GOLDEN / name), target / "cut"
    target.mkdir()
    rest = {key: value for key, value in tensors.items() if not LAYER.match(key)}
    names = sorted({match[2] for key in tensors if (match := LAYER.match(key))})
    layers = {
        f"model.layers.{row}.{part}": np.mean([tensors[f"model.layers.{i}.{part}"] for i in origin], axis=0)
        for row, origin in enumerate(kept)
        for part in names
    }
    save_file(rest | layers, target / "model.safetensors")
    config = config_of(GOLDEN / name) | {"num_hidden_layers": len(kept)}
    if config.get("layer_types"):
        config["layer_types"] = config["layer_types"][:1] * len(kept)
    (target / "config.json").write_text(json.dumps(config))
    return target


def logits(path: Path, num_loops: int | None = None) -> np.ndarray:
    lm = looplm.load(path, dtype="float32")
    loops = num_loops or lm.loop.num_loops
    return np.asarray(jax.jit(lambda ids: lm(ids, loops).logits(loops))(fixed_ids(lm.model.vocab_size)))


CASES = {
    "concat": ("llama_a", "--prelude 0:1 --block 1:2 --coda 3:4", [(0,), (1,), (3,)]),
    "none": ("qwen3_a", "--prelude 0:1 --block 2:4 --inject none", [(0,), (2,), (3,)]),
    "add": ("qwen3_a", "--prelude 0:1 --block 1:3 --coda 3:4 --inject add", [(0,), (1,), (2,), (3,)]),
    "gate": ("olmo2_a", "--block 1:3 --coda 3:4 --inject gate", [(1,), (2,), (3,)]),
    "average": ("olmo2_a", "--block 0:4 --select average --loops 2 --inject none", [(0, 2), (1, 3)]),
    "even": ("llama_a", "--block 0:4 --select even --loops 2 --inject none", [(0,), (3,)]),
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "concat")) for name in CASES])
def test_one_loop_is_the_stack_of_the_kept_layers(name, tmp_path, command):
    fixture, options, kept = CASES[name]
    shown = command("convert", "retrofit", GOLDEN / fixture, tmp_path / "run", *options.split())
    assert shown.code == 0, shown.stderr
    cut = logits(cut_folder(fixture, tmp_path, kept))
    np.testing.assert_allclose(logits(tmp_path / "run", 1), cut, atol=1e-5, rtol=1e-5)
    rows = [line for line in shown.stdout.splitlines() if line.startswith(("injection ", "block, 1 loop", "logits "))]
    assert len(rows) == 3
    assert all(float(row.split()[-1]) <= 1e-5 for row in rows), rows
    assert float(rows[-1].split()[-2]) == pytest.approx(np.abs(cut).max(), rel=1e-3)
    run = from_json(tmp_path / "run" / "config.json")
    assert run.loop.num_loops == (2 if "--loops" in options else 4)
    many = logits(tmp_path / "run")
    if name == "concat":
        # The map passes the input alone at first: more loops change nothing until it has learned to use the state.
        np.testing.assert_allclose(many, cut, atol=1e-5, rtol=1e-5)
    else:
        assert np.abs(many - cut).max() > 0.01


@pytest.mark.slow
def test_without_an_injection_the_middle_layers_run_again_and_again(tmp_path, command):
    """Loops without training: the block between is the same layers, written down as often as they run."""
    options = ("--prelude", "0:1", "--block", "1:3", "--coda", "3:4", "--inject", "none", "--loops", "3")
    assert command("convert", "retrofit", GOLDEN / "llama_a", tmp_path / "run", *options).code == 0
    written_out = cut_folder("llama_a", tmp_path, [(0,), *[(1,), (2,)] * 3, (3,)])
    np.testing.assert_allclose(logits(tmp_path / "run"), logits(written_out), atol=1e-5, rtol=1e-5)


FULL_RANK = 64
"""The smaller dim of the fixtures' largest matrices."""


@pytest.mark.parametrize(
    "name", ["llama_a", *(pytest.param(x, marks=pytest.mark.slow) for x in ("qwen3_a", "olmo2_a"))]
)
def test_loops_with_adapters_of_full_rank_are_the_layers_that_they_stand_for(name, tmp_path, command):
    """The folder itself is what they are compared with. Less rank is less near."""
    original, far = logits(GOLDEN / name), {}
    for rank in (FULL_RANK, 4) if name != "llama_a" else (FULL_RANK,):
        run = tmp_path / str(rank)
        options = ("--block", "0:4", "--select", "average", "--loops", "2", "--inject", "none", "--lora-rank", rank)
        shown = command("convert", "retrofit", GOLDEN / name, run, *options)
        assert shown.code == 0, shown.stderr
        assert f"2 loops with adapters of rank {rank} against the layers that they stand for" in shown.stdout
        far[rank] = np.abs(logits(run) - original).max()
        adapter = from_json(run / "config.json").model.adapter
        assert (adapter.rank, adapter.scale, adapter.loops) == (rank, 1.0, 2)
    assert far[FULL_RANK] < 1e-5 * max(1.0, np.abs(original).max())
    assert far.get(4, 1.0) > 0.01


def test_the_nearest_matrix_of_a_rank_is_off_by_the_singular_values_that_are_left_out():
    matrix = np.random.default_rng(0).normal(size=(5, 7))
    values = np.sort(np.sqrt(np.linalg.eigvalsh(matrix @ matrix.T)))[::-1]
    for rank in (1, 3, 5, 8):
        a, b = nearest_of_rank(matrix, rank)
        assert (a.shape, b.shape) == ((5, rank), (rank, 7))
        error = np.linalg.norm(matrix - a @ b)
        np.testing.assert_allclose(error, np.sqrt(np.sum(values[rank:] ** 2)), atol=1e-5)
        assert not b[5:].any()
        assert np.linalg.norm(a, axis=0) == pytest.approx(np.ones(rank))


REFUSED = {
    "--block 1-3": r"--block '1-3' is no range of layers; give START:STOP",
    "--block 2:2": r"--block 2:2 holds no layer; the end is not included",
    "--block 3:1": r"--block 3:1 holds no layer",
    "--block 1:5": r"--block 1:5 goes beyond the model's 4 layers; end at 4 or before",
    "--prelude 0:2 --block 1:3": r"--block 1:3 begins before --prelude 0:2 ends; .* begin at 2 or later",
    "--prelude 0:1 --block 1:4 --coda 0:1": r"--coda 0:1 begins before --block 1:4 ends",
    "--block 0:4 --inject state": r"--inject state is not known; use one of none, concat, add, gate",
    "--block 0:4 --select best": r"--select best is not known; use one of given, even, average, angular",
    "--block 0:4 --layers 2": r"--layers 2 is not the 4 layers of --block",
    "--block 0:3 --select even": r"4 loops do not divide the 3 layers of --block; give --layers",
    "--block 0:3 --select even --layers 4": r"--layers 4 is not among the 3 layers of --block",
    "--block 0:4 --select average --layers 3": r"--layers 3 does not divide the 4 layers .* use one of \[1, 2, 4\]",
    "--block 0:4 --loops 0": r"--loops 0 must be at least 1",
    "--block 0:4 --lora-rank 4": r"4 loops of 4 layers are not the 4 layers of --block that they stand for",
    "--block 0:4 --select even --lora-rank 0": r"--lora-rank 0 must be at least 1",
    "--block 0:4 --select even --lora-rank 4 --inject add": r"--inject add adds the input; use one of none, concat",
    "--block 0:4 --text README.md": r"--text is looked at by --select angular alone",
}


@pytest.mark.parametrize("options", REFUSED)
def test_what_does_not_fit_is_one_line_and_nothing_is_written(options, tmp_path, command):
    shown = command("convert", "retrofit", GOLDEN / "llama_a", tmp_path / "run", *options.split())
    assert (shown.code, shown.stderr.count("\n")) == (2, 1), shown.stderr
    assert re.search(REFUSED[options], shown.stderr), shown.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "message"),
    [("ouro_a", "is a model of 4 loops already"), ("huginn_a", "loops already"), ("nowhere", "does not exist")],
)
def test_what_is_no_plain_stack_is_refused(name, message, tmp_path, command):
    shown = command("convert", "retrofit", GOLDEN / name, tmp_path / "run", "--block", "0:1")
    assert (shown.code, shown.stderr.count("\n")) == (2, 1), shown.stderr
    assert message in shown.stderr
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_said_before_layers_are_looked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(write, "run_stages", None)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").touch()
    with pytest.raises(UserError, match="run is there already; give a new folder"):
        retrofit(GOLDEN / "llama_a", tmp_path / "run", ANGULAR, Console())
    assert [path.name for path in tmp_path.rglob("*")] == ["run", "mine"]


def test_a_model_that_memory_does_not_hold_is_not_looked_into(tmp_path, monkeypatch):
    monkeypatch.setattr(write, "memory_bytes", lambda: 10_000)
    with pytest.raises(UserError, match=r"--select angular runs the whole model, which takes .* GB of memory, more"):
        retrofit(GOLDEN / "llama_a", tmp_path / "run", ANGULAR, Console())
    assert not list(tmp_path.iterdir())


def test_loops_that_would_share_experts_get_no_adapters(tmp_path):
    wish = Wish(None, "0:2", None, 2, "none", "average", None, None, 4)
    with pytest.raises(UserError, match="--lora-rank: experts have no adapters and would be shared by loops; leave it"):
        retrofit(GOLDEN / "mixtral_a", tmp_path / "run", wish, Console())


@pytest.mark.parametrize("length", [-1, "many", None])
def test_a_length_that_is_none_is_left_to_the_default(length, tmp_path):
    folder = copy_of("llama_a", tmp_path / "hf", max_position_embeddings=length)
    assert open_source(folder).length == LONGEST


def test_models_are_compared_in_float32_where_products_would_be_less(monkeypatch):
    """As they are on a GPU or a TPU by default, which differs by more than what is allowed."""
    seen = []
    monkeypatch.setattr(stages, "_stages", lambda *_: seen.append(jax.config.jax_default_matmul_precision))
    source = open_source(GOLDEN / "llama_a")
    model, params = plain_stack(source, ((0,),))
    run_stages(model, params, fixed_ids(model.vocab_size))
    assert seen == ["highest"]


def test_layers_are_chosen_as_they_are_asked_for():
    assert evenly(range(2, 12), 4) == [(2,), (5,), (8,), (11,)]
    assert evenly(range(4, 9), 1) == [(6,)]
    assert averaged(range(3, 9), 2) == [(3, 5, 7), (4, 6, 8)]
    ranges = Ranges.of(12, prelude=None, block="2:12", coda=None)
    assert num_chosen(ranges, "given", None, 4) == 10
    assert num_chosen(ranges, "even", None, 5) == 2
    assert num_chosen(ranges, "angular", 7, 4) == 7
    with pytest.raises(UserError, match="beyond the model's 12 layers"):
        Ranges.of(12, prelude=None, block="0:4", coda="10:13")


def test_the_run_of_layers_that_turns_least_is_left_out():
    rng = np.random.default_rng(0)
    layers_NSD = rng.normal(size=(9, 5, 4))  # of eight layers; x_8 leaves the last
    layers_NSD[6] = 2 * layers_NSD[4] + 1e-3  # the layers 4 and 5 together hardly turn anything
    for apart in (1, 2, 5):
        expected = [
            np.mean([
                np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
                for a, b in zip(layers_NSD[i], layers_NSD[i + apart], strict=True)
            ])
            for i in range(9 - apart)
        ]  # fmt: skip
        np.testing.assert_allclose(angular_distances(layers_NSD, apart) * np.pi, expected)
    assert nearest(range(1, 8), 5, layers_NSD) == [(1,), (2,), (3,), (6,), (7,)]
    assert nearest(range(5, 8), 3, layers_NSD) == [(5,), (6,), (7,)]
    # The pair (4, 5) is not all within the range: another one is left out.
    assert nearest(range(5, 8), 1, layers_NSD) in ([(5,)], [(7,)])


@pytest.mark.slow
def test_layers_are_chosen_by_what_enters_them(tmp_path, command):
    """Of a model with a layer that adds nothing, that layer goes."""
    folder = cut_folder("llama_a", tmp_path, [(0,), (1,), (2,), (3,)])
    tensors = tensors_of(folder)
    silent = {f"model.layers.2.{name}.weight" for name in ("self_attn.o_proj", "mlp.down_proj")}
    save_file({name: 0 * value if name in silent else value for name, value in tensors.items()},
              folder / "model.safetensors")  # fmt: skip
    options = ("--block", "0:4", "--select", "angular", "--layers", "3")
    shown = command("convert", "retrofit", folder, tmp_path / "run", *options)
    assert shown.code == 0, shown.stderr
    assert "angles between them of 32 fixed ids; give --text for those of a text" in shown.stdout
    assert "block [0, 1, 3]" in shown.stdout


@pytest.fixture(scope="module")
def plain(tmp_path_factory, tiny_run, write_config, command):
    """A trained run of ours whose three layers run once."""
    folder = tmp_path_factory.mktemp("plain")
    changes = {"model.block_layers": 3, "model.exit_gate": None, "objective": "final", "loop.num_loops": 1}
    config = write_config(folder, tiny_run(**changes))
    assert command("train", config, "--workdir", folder / "run").code == 0
    return folder / "run"


@pytest.mark.slow
def test_a_run_of_ours_becomes_one_that_is_scored_written_with_and_trained(plain, tiny_run, tiny_data, tmp_path,
                                                                           command, config_file):  # fmt: skip
    options = ("--prelude", "0:1", "--block", "1:2", "--coda", "2:3", "--loops", "2", "--inject", "gate")
    shown = command("convert", "retrofit", plain, tmp_path / "run", *options)
    assert shown.code == 0, shown.stderr
    np.testing.assert_allclose(logits(tmp_path / "run", 1), logits(plain), atol=1e-5)
    out = tmp_path / "scores.json"
    shown = command("eval", tmp_path / "run", "--data", tiny_data / "validation", "--out", out)
    assert shown.code == 0, shown.stderr
    assert json.loads(out.read_text())["depths"] == [1, 2]
    assert command("generate", tmp_path / "run", "--prompt", "def", "--max-tokens", 4).code == 0
    config = config_file(tiny_run(objective="final"))
    shown = command("train", config, "--workdir", tmp_path / "tuned", "--set", f"model=from:{tmp_path / 'run'}")
    assert shown.code == 0, shown.stderr
    assert f"starting from the weights of {tmp_path / 'run'} after step 0" in shown.stdout
    assert command("generate", tmp_path / "tuned", "--prompt", "def", "--max-tokens", 4).code == 0


@pytest.mark.slow
def test_a_text_decides_which_layers_go(plain, tmp_path, command):
    (tmp_path / "text.txt").write_text("def f(x):\n    return x\n" * 20)
    options = ("--block", "0:3", "--select", "angular", "--layers", "2", "--text", tmp_path / "text.txt")
    shown = command("convert", "retrofit", plain, tmp_path / "run", *options)
    assert shown.code == 0, shown.stderr
    assert re.search(r"angles between them of \d+ tokens of .*text\.txt", shown.stdout.replace("\n", ""))
