"""What a reasoner answers after every segment, when it halts, and what votes make of it."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from looplm.cli import app
from looplm.config.schema import DeepSupervision, SupervisedRows
from looplm.data.grids.augmentation import Augmentation
from looplm.data.grids.encoding import decode
from looplm.eval import answers
from looplm.eval.answers import Seen, example_grids, halting, segments_of, shown_segments
from looplm.eval.attempts import measure_attempts
from looplm.metrics.answers import Answers
from looplm.metrics.sweep import read_sweeps
from looplm.report import write_report


def test_halting_is_that_of_every_example_by_itself() -> None:
    rng = np.random.default_rng(0)
    seen = Seen(rng.random((40, 6)) < 0.4, rng.random((40, 6)) < 0.2)
    seen.halts_GK[:, 0] = False
    halted, right = np.zeros(6), np.zeros(6)
    for exact_K, halts_K in zip(*seen, strict=True):
        for segment in range(6):
            firsts = [k for k in range(segment + 1) if halts_K[k]]
            halted[segment] += bool(firsts)
            right[segment] += bool(firsts) and exact_K[firsts[0]]
    found = halting(seen)
    assert found["halted"] == pytest.approx(list(halted / 40))
    assert found["right"][0] is None
    assert found["right"][1:] == pytest.approx(list(right[1:] / halted[1:]))
    assert found["solved"] == pytest.approx(list(seen.exact_GK.mean(axis=0)))


def test_the_first_puzzles_are_kept_and_the_hardest_ones() -> None:
    labels_BS = np.arange(24).reshape(6, 4)
    exact_BK = np.array([[1, 1], [0, 1], [1, 1], [0, 0], [0, 0], [0, 1]], bool)
    of_labels_B = np.array([0, 1, 1, 1, 0, 1], bool)
    batch = {"tokens": labels_BS + 100, "labels": labels_BS}
    best_KBS = np.stack([labels_BS, labels_BS + 1])
    kept = example_grids(batch, best_KBS, exact_BK, of_labels_B)
    assert [grid.wanted[0] // 4 for grid in kept] == [1, 2, 3, 5]
    assert kept[0].guesses == [[4, 5, 6, 7], [5, 6, 7, 8]]
    assert (kept[0].columns, kept[0].segments, kept[0].given[0]) == (2, [1, 2], 104)
    assert (
        example_grids({name: rows[:, :3] for name, rows in batch.items()}, best_KBS[..., :3], exact_BK, of_labels_B)[
            0
        ].columns
        == 3
    )
    assert (shown_segments(1), shown_segments(16), shown_segments(512)) == (
        [1], [1, 2, 4, 8, 16], [1, 2, 4, 8, 16, 512],
    )  # fmt: skip


def test_segments_are_those_of_training_unless_depths_are_asked_for(tiny_run) -> None:
    texts = tiny_run()
    assert segments_of(texts, (1, 8), asked=True) == 0
    run = texts.model_copy(update={"objective": SupervisedRows(), "carry": DeepSupervision(max_segments=5)})
    R = run.loop.num_loops
    assert segments_of(run, (R,), asked=False) == 5
    assert segments_of(run, (1,), asked=True) == 1
    assert segments_of(run, (1, 7 * R), asked=True) == 7


def run_app(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.slow
def test_votes_from_the_data_to_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_app(
        "data", "grids", "rules", "--out", "rules", "--tasks", 12, "--demonstrations", 12, "--size", 6, "--augment", 3
    )
    names = json.loads((tmp_path / "rules" / "identifiers.json").read_text())
    config = Path(__file__).parents[2] / "configs" / "trm.py"
    assert len(names) <= 56, "ids, which eight devices share"
    changes = {
        "data.train.folder": "rules", "data.validation.folder": "rules", "data.sequence_length": 36,
        "data.batch_tokens": 36 * 64, "num_steps": 400, "carry.max_segments": 4, "model.dim": 64,
        "model.num_heads": 4, "model.hidden_dim": 128, "model.block_layers": 1, "model.embedding_scale": 8,
        "model.core.inner_loops": 2, "model.front.ids.num_ids": 56, "model.front.ids.dim": 64,
        "model.front.zeros": 0, "optim.learning_rate": 2e-3, "optim.schedule.warmup_steps": 20,
        "optim.ema_decay": 0.9,
    }  # fmt: skip
    run_app("train", f"{config}:arc", "--workdir", "run", *(f"--set={name}={value}" for name, value in changes.items()))
    asked = []

    def spied(windows, rows):
        asked.extend(rows)
        return measure_attempts(windows, rows)

    monkeypatch.setattr(answers, "measure_attempts", spied)
    shown = run_app("eval", "run", "--depths", "3,6,9,12")
    found = Answers.read(tmp_path / "run" / "eval" / "answers-400.json")
    assert found is not None
    assert found.attempts is not None
    (sweep,) = read_sweeps(tmp_path / "run" / "eval")
    assert sweep.solve is not None
    # Segments that go on from one another are the loops of one pass.
    assert found.solved == pytest.approx([sweep.solve.at[depth - 1] for depth in (3, 6, 9, 12)], abs=0.011)
    # The votes, counted anew: of every question the answers under all ids, the two most frequent, then the gate's mean.
    tasks = json.loads((tmp_path / "rules" / "test_puzzles.json").read_text())
    ballots: dict[tuple[str, str], list[tuple[str, float]]] = {}
    for rows in asked:
        for number, tokens, best, gate in zip(*rows, strict=True):
            task, done = Augmentation.parse(names[number])
            question, answer = (str(done.undo(decode(one)).tolist()) for one in (tokens, best))
            ballots.setdefault((task, question), []).append((answer, float(gate)))
    right = 0
    for name, task in tasks.items():
        for pair in task["test"]:
            votes = ballots[name, str(pair["input"])]
            assert len(votes) == sum(Augmentation.parse(other)[0] == name for other in names[1:])
            counts = Counter(answer for answer, _ in votes)
            mean = {one: np.mean([q for answer, q in votes if answer == one]) for one in counts}
            best = sorted(counts, key=lambda one: (counts[one], mean[one]))[-2:]
            right += str(pair["output"]) in best
    assert found.attempts.solved == pytest.approx(right / len(tasks))
    assert right > 0, "else nothing is compared"
    assert f"2 attempts by votes over augmentations: {found.attempts.solved:.1%} of 12 tasks solved" in shown
    assert "by votes over augmentations" in write_report(tmp_path / "run").read_text()
