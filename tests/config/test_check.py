from collections.abc import Callable

import pytest

from looplm.config.check import check, max_loops
from looplm.config.schema import Run
from looplm.errors import UserError


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model.dim": 18, "model.num_heads": 4},
            "model.num_heads=4 does not divide model.dim=18; use one of 1, 2, 3, 6, 9, 18 or set model.head_dim",
        ),
        ({"model.dim": 18, "model.num_heads": 6}, "the head size 3 is odd; rotary positions need an even one"),
        ({"model.head_dim": 5}, "the head size 5 is odd; rotary positions need an even one"),
        (
            {"model.num_heads": 4, "model.num_kv_heads": 3},
            "model.num_kv_heads=3 does not divide model.num_heads=4; use one of 1, 2, 4",
        ),
        (
            {"data.batch_tokens": 130},
            "data.batch_tokens=130 is no multiple of data.sequence_length=16; use 128",
        ),
        ({"data.batch_tokens": 5}, "data.batch_tokens=5 is no multiple of data.sequence_length=16; use 16"),
        (
            {"data.accumulation_steps": 3},
            "data.accumulation_steps=3 does not divide the 8 sequences of a batch; use one of 1, 2, 4, 8",
        ),
        (
            {"loop.depth": {"kind": "uniform", "min_loops": 5, "max_loops": 2}},
            "loop.depth.min_loops=5 is above loop.depth.max_loops=2; swap them",
        ),
        ({"loop.backprop_loops": 4}, "loop.backprop_loops=4 is more than the 3 loops that run; use at most that"),
        (
            {"loop.backprop_loops": 3, "loop.depth": {"kind": "uniform", "max_loops": 2}},
            "loop.backprop_loops=3 is more than the 2 loops that run; use at most that",
        ),
        (
            {"model.exit_gate": None},
            "objective.kind=expected needs an exit gate; set model.exit_gate={} or objective=final",
        ),
        (
            {"optim.schedule.warmup_steps": 3},
            "optim.schedule.warmup_steps=3 leaves no step of num_steps=3 for the rest; "
            "set optim.schedule.warmup_steps=0, or more num_steps",
        ),
    ],
)
def test_what_does_not_fit_comes_with_its_remedy(tiny_run: Callable[..., Run], changes: dict, message: str) -> None:
    with pytest.raises(UserError) as error:
        check(tiny_run(**changes))
    assert str(error.value) == message


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model.dim": 18, "model.num_heads": 4, "model.head_dim": 6},
        {"model.num_heads": 4, "model.num_kv_heads": 1},
        {"data.accumulation_steps": 8},
        {"loop.depth": {"kind": "uniform", "min_loops": 2, "max_loops": 2}},
        {"loop.backprop_loops": 3},
        {"loop.backprop_loops": 5, "loop.depth": {"kind": "uniform", "max_loops": 5}},
        {"model.exit_gate": None, "objective": "final"},
        {"objective": "final"},
        {"optim.schedule.warmup_steps": 0},
    ],
)
def test_what_fits_passes_unchanged(tiny_run: Callable[..., Run], changes: dict) -> None:
    run = tiny_run(**changes)
    assert check(run) is run


def test_all_faults_are_told_at_once(tiny_run: Callable[..., Run]) -> None:
    with pytest.raises(UserError, match=r"batch_tokens=130 .*; .*warmup_steps=9"):
        check(tiny_run(**{"data.batch_tokens": 130, "optim.schedule.warmup_steps": 9}))


def test_the_largest_depth(tiny_run: Callable[..., Run]) -> None:
    assert max_loops(tiny_run()) == 3
    assert max_loops(tiny_run(**{"loop.depth": {"kind": "uniform", "max_loops": 7}})) == 7
