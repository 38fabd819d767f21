"""The laws of depth against the official sampler and against each law's own moments."""

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from looplm.config.check import check
from looplm.errors import UserError
from looplm.train.depth import DepthSchedule

GOLDEN = Path(__file__).parents[1] / "golden" / "huginn_a"


def draws(tiny_run, depth, steps=1250, **changes):
    run = tiny_run(**{"loop.depth": depth, "loop.depth_per": "sequence", "loop.backprop_loops": 8, **changes})
    schedule = DepthSchedule(run)
    return np.concatenate([schedule.draw(step) for step in range(steps)])


def assert_same_law(ours, official):
    """Two-sample Kolmogorov-Smirnov at a level of 0.1 %, of loops without and with gradient."""
    assert len(ours) == len(official) == 10_000
    for column in (0, 1):
        values = np.arange(max(ours[:, column].max(), official[:, column].max()) + 1)
        shares = [np.searchsorted(np.sort(x[:, column]), values, side="right") / len(x) for x in (ours, official)]
        assert np.abs(shares[0] - shares[1]).max() < 1.95 * np.sqrt(2 / 10_000)


@pytest.mark.parametrize("mean", [4, 32])
def test_lognormal_poisson_follows_the_official_draws(tiny_run, mean):
    official = np.load(GOLDEN / "io.npz")[f"sampler_nk_mean{mean}_bptt8"].astype(int)
    ours = draws(tiny_run, "lognormal_poisson", **{"loop.num_loops": mean})
    assert_same_law(ours, official)
    summary = json.loads((GOLDEN / "sampler.json").read_text())[f"mean{mean}_bptt8"]
    assert ours.sum(axis=1).mean() == pytest.approx(summary["total_mean"], rel=0.03)


def test_poisson_follows_the_official_draws(tiny_run):
    official = np.load(GOLDEN.with_name("parcae_a") / "io.npz")["sampler_nk_mean8_bptt4"].astype(int)
    ours = draws(tiny_run, "poisson", **{"loop.num_loops": 8, "loop.backprop_loops": 4})
    assert_same_law(ours, official)


def test_poisson_has_its_mean_and_is_never_zero(tiny_run):
    totals = draws(tiny_run, "poisson", **{"loop.num_loops": 6}).sum(axis=1)
    assert totals.min() >= 1
    assert totals.mean() == pytest.approx(6, abs=0.1)
    assert totals.var() == pytest.approx(6, rel=0.1)


def test_schedule_jumps_or_grows(tiny_run):
    def loops(step, interpolate):
        depth = {"kind": "scheduled", "loops": {0: 1, 10: 5, 20: 9}, "interpolate": interpolate}
        return int(DepthSchedule(tiny_run(**{"loop.depth": depth})).num_loops(step)[0])

    assert [loops(step, False) for step in (0, 9, 10, 19, 20, 99)] == [1, 1, 5, 5, 9, 9]
    assert [loops(step, True) for step in (0, 5, 10, 15, 20, 99)] == [1, 3, 5, 7, 9, 9]


@pytest.mark.parametrize("shape", ["linear", "sqrt"])
@pytest.mark.parametrize(("full", "steps"), [(8, 40), (5, 3), (32, 100), (1, 7)])
def test_a_mean_and_a_window_grow_by_their_formulas(tiny_run, shape, full, steps):
    """Counted with fractions, from the definition: the smallest whole number that is not below full * f(step / steps).
    1 - sqrt(1 - p) <= n / full exactly where 1 - p >= (1 - n / full)^2."""
    growth = {"steps": steps, "shape": shape}
    changes = {"loop.num_loops": full, "loop.growth": growth, "num_steps": 200, "optim.schedule.warmup_steps": 0}
    schedule = DepthSchedule(tiny_run(**changes))
    only_window = DepthSchedule(tiny_run(**changes | {"loop.growth": None, "loop.backprop_growth": growth}))
    for step in range(steps + 5):
        p = min(Fraction(step, steps), Fraction(1))
        enough = {
            "linear": lambda n, p=p: full * p <= n,
            "sqrt": lambda n, p=p: 1 - p >= (1 - Fraction(n, full)) ** 2,
        }[shape]
        expected = next(n for n in range(1, full + 1) if enough(n))
        assert schedule.draw(step).tolist() == [0, expected]
        assert only_window.draw(step).tolist() == [full - expected, expected]


def test_a_growing_law_has_the_mean_of_its_step_and_no_larger_window(tiny_run):
    """As the official sampler, whose mean and window are both the curriculum's while it is below 8."""
    changes = {
        "loop.num_loops": 32, "loop.depth": "lognormal_poisson", "loop.backprop_loops": 8, "loop.depth_per": "sequence",
        "loop.growth": {"steps": 64}, "num_steps": 100, "data.batch_tokens": 16 * 4000,
    }  # fmt: skip
    schedule = DepthSchedule(tiny_run(**changes))
    for step, mean in ((0, 1), (7, 4), (32, 16), (64, 32), (90, 32)):
        drawn = schedule.draw(step)
        total = drawn.sum(axis=1)
        assert total.mean() == pytest.approx(mean + 1, rel=0.05)  # the law is one more than its rate
        np.testing.assert_array_equal(drawn[:, 1], np.minimum(total, min(mean, 8)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loop.depth": {"kind": "uniform", "max_loops": 3}, "loop.growth": {"steps": 2}}, "no part in .*kind=uniform"),
        ({"loop.growth": {"steps": 4}}, r"loop\.growth\.steps=4 are more than num_steps=3"),
        ({"loop.backprop_growth": {"steps": 9}}, r"loop\.backprop_growth\.steps=9 are more than num_steps=3"),
    ],
)
def test_a_growth_that_cannot_be_followed_is_refused(tiny_run, changes, message):
    with pytest.raises(UserError, match=message):
        check(tiny_run(**changes))
