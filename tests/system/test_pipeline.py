"""From text to a report through the command line, and the same model from Python."""

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest

import looplm
from looplm.api import LoadedLM
from looplm.config.load import to_json
from looplm.config.schema import Run
from looplm.data.dataset import TokenDataset
from looplm.data.loader import eval_batches
from looplm.data.window import AllWindows
from looplm.metrics.sinks import read_metrics

NUM_STEPS, EVAL_DEPTHS = 4, (1, 2, 3, 5)
PROMPT, MAX_TOKENS = "def add(", 6
MEASURED = {
    "step", "train/loss", "train/loss_loop_1", "train/loss_loop_2", "train/loss_loop_3", "train/grad_norm",
    "train/tokens", "optim/learning_rate", "loop/num_loops", "loop/state_norm", "loop/residual_rel",
    "loop/update_cosine", "gate/expected_depth", "gate/exit_loop_1", "gate/exit_loop_2", "gate/exit_loop_3",
    "perf/step_s", "perf/tokens_per_s", "perf/host_memory_gb", "data/wait_s",
}  # fmt: skip
"""In the line of every training step."""


class Products(NamedTuple):
    """What a chain of commands left."""

    folder: Path
    stdout: dict[str, str]
    """By command."""
    stderr: dict[str, str]

    @property
    def workdir(self) -> Path:
        return self.folder / "run"

    def sweep(self) -> dict:
        return json.loads((self.workdir / "eval" / f"depth_sweep-{NUM_STEPS}.json").read_text())


@pytest.fixture(scope="module")
def made(
    command, write_config, texts: list[Path], tiny_run: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory
) -> Products:
    folder = tmp_path_factory.mktemp("pipeline")
    data, workdir, inputs = folder / "data", folder / "run", [word for path in texts for word in ("--input", path)]
    run = tiny_run(
        **{
            "num_steps": NUM_STEPS,
            "data.train": str(data / "train"),
            "data.validation": str(data / "validation"),
            "log.tensorboard": True,
        }
    )
    lines = {
        "data tokenizer": [*inputs, "--vocab-size", run.model.vocab_size, "--out", folder],
        "data build": [
            *inputs, "--tokenizer", folder / "tokenizer.model", "--out", data, "--validation-fraction", "0.2"
        ],
        "train": [write_config(folder, run), "--workdir", workdir, "--set", "seed=5"],
        "eval": [workdir, "--depths", ",".join(map(str, EVAL_DEPTHS)), "--out", folder / "copy" / "sweep.json"],
        "generate": [workdir, "--prompt", PROMPT, "--max-tokens", MAX_TOKENS],
        "report": [workdir],
    }  # fmt: skip
    stdout, stderr = {}, {}
    for name, arguments in lines.items():
        code, stdout[name], stderr[name] = command(*name.split(), *arguments)
        assert code == 0, name
    return Products(folder, stdout, stderr)


@pytest.fixture(scope="module")
def lm(made: Products) -> LoadedLM:
    return looplm.load(made.workdir)


def test_the_run_directory_holds_what_is_promised(made: Products) -> None:
    files = {"config.json", "tokenizer.model", "metrics.jsonl", "events.jsonl", "report.html", ".lock"}
    assert {path.name for path in made.workdir.iterdir()} == files | {"checkpoints", "eval", "tensorboard"}
    assert {path.name for path in (made.workdir / "checkpoints").iterdir()} == {"2", "4"}
    assert [path.name for path in (made.workdir / "eval").iterdir()] == [f"depth_sweep-{NUM_STEPS}.json"]
    assert any((made.workdir / "tensorboard").iterdir())


def test_the_effective_config_is_printed_and_kept(made: Products, lm: LoadedLM) -> None:
    assert lm.run.seed == 5
    assert "seed = 5\n" in made.stdout["train"]
    assert "loop.num_loops = 3\n" in made.stdout["train"]
    assert (made.workdir / "config.json").read_text() == to_json(lm.run)


def test_every_step_is_measured(made: Products) -> None:
    rows = read_metrics(made.workdir / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, NUM_STEPS + 1))
    assert all(row.keys() >= MEASURED for row in rows)
    assert [row["step"] for row in rows if "perf/compile_s" in row] == [1]


def test_the_depth_sweep_has_all_depths(made: Products) -> None:
    sweep = made.sweep()
    assert sweep["depths"] == list(EVAL_DEPTHS)
    for name in ("loss", "loss_low", "loss_high", "bits_per_byte", "accuracy"):
        assert len(sweep[name]) == len(EVAL_DEPTHS)
    assert (made.folder / "copy" / "sweep.json").read_bytes() == (
        made.workdir / "eval" / f"depth_sweep-{NUM_STEPS}.json"
    ).read_bytes()


def test_the_loaded_model_gives_the_losses_of_the_evaluation(made: Products, lm: LoadedLM) -> None:
    sweep = made.sweep()

    @jax.jit
    def nll_R(batch: dict[str, jax.Array]) -> jax.Array:
        result = lm(batch["tokens"], num_loops=max(EVAL_DEPTHS), segments=batch["segments"])
        scored_BS = batch["labels"] >= 0
        label_BS1 = batch["labels"][..., None].clip(0)
        losses = []
        for depth in EVAL_DEPTHS:
            log_BSV = jax.nn.log_softmax(result.logits(depth))
            losses.append(-(jax.numpy.take_along_axis(log_BSV, label_BS1, axis=-1)[..., 0] * scored_BS).sum())
        return jax.numpy.stack(losses)

    dataset = TokenDataset.open(made.folder / "data" / "validation")
    total_R = sum(nll_R(batch) for batch in eval_batches(AllWindows(dataset, 16), batch_size=256))
    np.testing.assert_allclose(total_R / sweep["num_tokens"], sweep["loss"], rtol=1e-5)


def test_the_loaded_model_gives_the_same_with_and_without_jit(lm: LoadedLM) -> None:
    tokens_BS = np.arange(12).reshape(2, 6) + 10
    eager = lm(tokens_BS)
    jitted = jax.jit(lm)(tokens_BS)
    assert jitted.hidden_RBSD.shape == (lm.run.loop.num_loops, 2, 6, lm.model.dim)
    np.testing.assert_allclose(jitted.logits(2), eager.logits(2), atol=1e-6)
    np.testing.assert_allclose(jitted.expected_logits(), eager.expected_logits(), atol=1e-6)
    np.testing.assert_allclose(eager.exit_RBS.sum(axis=0), 1, atol=1e-6)


def test_generate_prints_what_python_gives(made: Products, lm: LoadedLM) -> None:
    (text,) = lm.generate([PROMPT], max_tokens=MAX_TOKENS)
    assert text
    assert made.stdout["generate"] == f"{PROMPT}{text}\n"


def test_only_generate_has_something_to_say_beside_its_output(made: Products) -> None:
    said = {name: text for name, text in made.stderr.items() if text}
    assert said == {"generate": f"step {NUM_STEPS}, 3 loops\n"}


def test_generate_shows_the_loops_of_every_token(made: Products, lm: LoadedLM, command) -> None:
    words = ["--prompt", PROMPT, "--max-tokens", MAX_TOKENS, "--loops", 4, "--exit", "gate:0.5", "--kv", "last"]
    warned, *tokens, mean, told = command("generate", made.workdir, *words, "--show-exits").stderr.splitlines()
    assert "kv=last" in warned
    (text,) = lm.generate([PROMPT], num_loops=4, exit="gate:0.5", kv="last", max_tokens=MAX_TOKENS)
    assert [int(line.split()[0]) for line in tokens] == text.loops.tolist()
    assert "".join(ast.literal_eval(line.split(maxsplit=1)[1]) for line in tokens) == text
    assert mean.startswith(f"{np.mean(text.loops):.2f} of 4 loops a token: ")
    assert told == f"step {NUM_STEPS}, at most 4 loops, exit gate:0.5"


def test_the_tokenizer_says_what_it_left_out(command, texts: list[Path], tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "binary.txt").write_bytes(b"a\0b")
    (tmp_path / "image.png").touch()
    inputs = [word for path in (*texts[0].glob("*.py"), tmp_path) for word in ("--input", path)]
    outcome = command("data", "tokenizer", *inputs, "--vocab-size", 384, "--out", tmp_path / "out")
    model = tmp_path / "out" / "tokenizer.model"
    assert outcome.stdout.splitlines() == [
        f"wrote {model}; skipped: 1 empty, 1 nul, 1 unknown_suffix",
        "  skipped empty: empty.txt:1",
        "  skipped nul: binary.txt:1",
        "  skipped unknown_suffix: image.png",
    ]


def test_the_report_is_there(made: Products) -> None:
    assert made.stdout["report"] == f"wrote {made.workdir / 'report.html'}\n"
    assert (made.workdir / "report.html").read_text().rstrip().endswith("</html>")
