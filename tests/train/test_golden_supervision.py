"""Four steps of deep supervision with the weights, rows and states of the authors' code: HRM, TRM and URM.

What is kept from step to step, losses, metrics, all gradients, and the step of the table of ids. Other variants, in a
folder that LOOPLM_GOLDEN names, are run too.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from looplm.config.schema import DeepSupervision, Optim, RowSign, Schedule, SupervisedRows
from looplm.optim.build import build_optimizer
from looplm.train.batch import Batch
from looplm.train.carrying import build_carrying
from looplm.train.deep_supervision import RowsInWork
from looplm.train.depth import DepthSchedule
from looplm.train.step import build_loss, row_means
from tests.checkpoint.folders import config_of, folders
from tests.checkpoint.reasoners import STEPS, assert_all_gradients, carried, loaded

NAMES = {"inputs": "tokens", "labels": "labels", "puzzle_identifiers": "ids"}
METRICS = {"train/exact": "exact_accuracy", "train/accuracy": "accuracy", "carry/segments": "steps"}


@pytest.fixture(scope="module", params=folders("hrm", "trm", "urm"), ids=lambda folder: folder.name)
def folder(request):
    return request.param


@pytest.fixture(scope="module")
def run(folder, tiny_run):
    lm, official = loaded(folder)[0], config_of(folder)
    carry = DeepSupervision(max_segments=official.get("halt_max_steps") or official["loops"], exploration=0.0)
    loss = "softmax" if "softmax" in official.get("loss_type", "") else "stablemax"
    settings = dict(model=lm.model, loop=lm.loop, objective=SupervisedRows(loss=loss), carry=carry)
    return tiny_run().model_copy(update=settings)


def rows_of(run, io, place: str) -> dict[str, jax.Array]:
    """The rows of a batch (`batch1/`) or of a carry (`step1/carry_in/data_`)."""
    rows = {ours: jnp.asarray(io[f"{place}{theirs}"]) for theirs, ours in NAMES.items()}
    if run.model.front is None or run.model.front.ids is None:
        del rows["ids"]
    (B, S), tokens = rows["tokens"].shape, rows["tokens"]
    return rows | {"segments": jnp.ones_like(tokens), "positions": jnp.broadcast_to(jnp.arange(S), (B, S))}


@pytest.fixture(scope="module")
def steps(folder, run):
    """(The carry, what the step gave, its gradient) of every step."""
    lm, io = loaded(folder)
    sums = build_loss(run, lm.functional, DepthSchedule(run), dtype=jnp.float32)
    step = jax.jit(jax.value_and_grad(sums, has_aux=True))
    first = "step1/carry_in/"
    counts = (jnp.asarray(io[f"{first}{name}"]) for name in ("steps", "halted"))
    carry = RowsInWork(rows_of(run, io, f"{first}data_"), carried(io, "step1/carry_in"), *counts)
    found = []
    for number in STEPS:
        rows = rows_of(run, io, f"batch{number}/")
        batch = Batch(**rows, sequence=jnp.arange(len(rows["tokens"])))
        given = (
            jax.tree.map(jnp.zeros_like, lm.params),
            lm.params,
            batch,
            carry,
            jnp.zeros(2, jnp.int32),
            jnp.int32(0),
        )
        (objective, (result, carry)), gradient = step(*given)
        found.append((carry, objective, result, gradient))
    return found


def test_rows_stay_and_go_as_officially(folder, run, steps):
    _, io = loaded(folder)
    for number, (carry, *_) in zip(STEPS, steps, strict=True):
        place = f"step{number}/carry_out/"
        np.testing.assert_array_equal(carry.halted_B, io[f"{place}halted"])
        np.testing.assert_array_equal(carry.segments_B, io[f"{place}steps"])
        for name, expected in rows_of(run, io, f"{place}data_").items():
            np.testing.assert_array_equal(carry.rows[name], expected)
        states = jax.tree.leaves(carry.state), jax.tree.leaves(carried(io, place.rstrip("/")))
        for ours, expected in zip(*states, strict=True):
            np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_losses_and_metrics_of_rows_that_end(folder, run, steps):
    _, io = loaded(folder)
    for number, (carry, objective, result, _) in zip(STEPS, steps, strict=True):
        np.testing.assert_allclose(objective, io[f"step{number}/loss"], rtol=2e-5)
        assert result.divisor == len(carry.halted_B)
        means = row_means(result.rows, build_carrying(run), carry)
        for ours, theirs in METRICS.items():
            total, count = means[ours]
            assert count == io[f"step{number}/metrics/count"]
            np.testing.assert_allclose(total, io[f"step{number}/metrics/{theirs}"], rtol=1e-5)
        assert means["gate/right"][0] == io[f"step{number}/metrics/q_halt_accuracy"]


@pytest.mark.parametrize("number", [1, 2])
def test_all_gradients(folder, steps, number):
    *_, gradient = steps[number - 1]
    assert_all_gradients(folder, number, loaded(folder)[0], gradient, 1e-4)


def test_the_step_of_the_table_of_ids(folder, run, steps):
    lm, io = loaded(folder)
    if "puzzle_emb_after_signsgd_step1" not in io:
        pytest.skip("this variant has no table")
    config = Optim(
        learning_rate=0.01, schedule=Schedule(decay="constant"), clip_norm=None, ids=RowSign(weight_decay=0.1)
    )
    optimizer = build_optimizer(config, lm.functional, 10)
    *_, gradient = steps[0]
    updates = jax.jit(lambda gradient: optimizer.update(gradient, optimizer.init(lm.params), lm.params)[0])(gradient)
    moved = lm.official_tensors(jax.tree.map(jnp.add, lm.params, updates))["inner.puzzle_emb.weights"]
    np.testing.assert_allclose(moved, io["puzzle_emb_after_signsgd_step1"], atol=1e-7)
