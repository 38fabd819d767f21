"""The file with the load of every expert."""

import io

import numpy as np
import pytest
from rich.console import Console

from looplm.metrics.loads import LoadLog, read_loads
from looplm.metrics.sinks import read_metrics
from looplm.metrics.step import NO_ROUTERS, Routers, RouterSums
from looplm.train.trainer import Trainer

LOAD = np.array([[[0, 0]], [[3, 1]], [[2, 2]]])
"""(3 iterations of the window, 1 layer, 2 experts); the first did not run."""


def written(path, resume_step, steps, drawn):
    log = LoadLog(path, resume_step=resume_step, every_steps=4, last_step=10)
    for step in steps:
        log.write(step, Routers({"block": RouterSums(LOAD, np.zeros(3), np.array(0))}, {}), drawn)
    log.close()
    return read_loads(path)


def test_loops_that_ran_every_few_steps_and_once_after_a_resume(tmp_path):
    path = tmp_path / "experts.jsonl"
    rows = written(path, 0, range(1, 10), np.array([5, 2]))
    assert [row["step"] for row in rows] == [1, 4, 8]
    assert all(row["loops"] == [6, 7] for row in rows)
    np.testing.assert_array_equal(rows[0]["moe/load/block"], LOAD[1:])
    rows = written(path, 6, range(7, 11), np.array([[5, 2], [0, 1]]))
    assert [(row["step"], row["loops"]) for row in rows] == [(1, [6, 7]), (4, [6, 7]), (8, []), (10, [])]
    assert rows[-1]["moe/load/block"].shape == LOAD.shape


def test_a_dense_model_has_no_file(tmp_path):
    log = LoadLog(tmp_path / "experts.jsonl", resume_step=0, every_steps=1, last_step=9)
    log.write(1, NO_ROUTERS, np.array([0, 2]))
    log.close()
    assert read_loads(tmp_path / "experts.jsonl") == []
    assert not (tmp_path / "experts.jsonl").exists()


def test_a_run_counts_every_choice_of_every_loop(tiny_run, tmp_path):
    experts = {"kind": "moe", "num_experts": 4, "experts_per_token": 2, "expert_dim": 8}
    run = tiny_run(
        **{"model.feed_forward": experts, "num_steps": 2, "log.loads_every_steps": 1, "data.validation": None}
    )
    Trainer(run, tmp_path / "run", Console(file=io.StringIO())).train()
    lines, rows = read_loads(tmp_path / "run" / "experts.jsonl"), read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2]
    for line, row in zip(lines, rows, strict=True):
        load_TE = line["moe/load/block"][:, 0]
        np.testing.assert_array_equal(load_TE.sum(axis=1), [2 * run.data.batch_tokens] * 3)
        most = [row[f"moe/load_max_loop_{t}"] for t in line["loops"]]
        assert most == pytest.approx(list(load_TE.max(axis=1) / load_TE.mean(axis=1)))
