"""The laws of depth against the official sampler and against each law's own moments."""

import json
from pathlib import Path

import numpy as np
import pytest

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
