import math
from collections.abc import Callable
from typing import Any

import pytest

from looplm.metrics.sweep import Sweep
from looplm.report.verdict import clearly, verdicts

MakeSweep = Callable[..., Sweep]
DEPTHS = {"loss_low": [3.97, 3.47, 3.27, 3.17], "loss_high": [4.03, 3.53, 3.33, 3.23], "loss": [4.0, 3.5, 3.3, 3.2]}
"""Four depths, trained at two."""


def few(**changes: Any) -> dict[str, Any]:
    rest = {"bits_per_byte": [1.8, 1.7, 1.6, 1.5], "accuracy": [0.1, 0.2, 0.3, 0.4], "trained_depth": 2}
    fields = {"depths": [1, 2, 3, 4], **DEPTHS, **rest, **changes}
    trained = fields["loss"][fields["depths"].index(fields["trained_depth"])]
    paired = {
        f"change_{side}": [x - trained + d for x in fields["loss"]] for side, d in (("low", -0.03), ("high", 0.03))
    }
    return fields | {name: changes.get(name, value) for name, value in paired.items()}


def gain(nats: float, low: float, high: float) -> dict[str, float]:
    return {"from_depth": 1, "to_depth": 4, "nats": nats, "low": low, "high": high}


@pytest.mark.parametrize(
    ("numbers", "tone", "text"),
    [
        (
            gain(0.21, 0.19, 0.23),
            "good",
            "More loops help: depth 4 lowers the held-out loss by 0.21 nats against depth 1 "
            "(95 % interval 0.19 to 0.23).",
        ),
        (
            gain(0.0021, 0.0019, 0.0023),
            "good",
            "More loops help: depth 4 lowers the held-out loss by 0.0021 nats against depth 1 "
            "(95 % interval 0.0019 to 0.0023).",
        ),
        (
            gain(0.004, -0.006, 0.014),
            "bad",
            "More loops did not help: depth 4 gains 0.004 nats of held-out loss over depth 1, "
            "and the 95 % interval -0.006 to 0.014 includes zero.",
        ),
        (
            gain(-0.3, -0.35, -0.25),
            "bad",
            "More loops made it worse: depth 4 raises the held-out loss by 0.30 nats against depth 1 "
            "(95 % interval 0.25 to 0.35).",
        ),
    ],
)
def test_the_gain(make_sweep: MakeSweep, numbers: dict[str, float], tone: str, text: str) -> None:
    first = verdicts(make_sweep(gain=numbers))[0]
    assert (first.tone, first.text) == (tone, text)


@pytest.mark.parametrize("numbers", [None, {"from_depth": 4, "to_depth": 4, "nats": 0.0, "low": 0.0, "high": 0.0}])
def test_nothing_is_said_about_one_depth(make_sweep: MakeSweep, numbers: dict[str, float] | None) -> None:
    first = verdicts(make_sweep(gain=numbers))[0]
    assert first.tone == "neutral"
    assert "Only one depth" in first.text


def test_fewer_loops_may_be_enough(make_sweep: MakeSweep) -> None:
    texts = [verdict.text for verdict in verdicts(make_sweep(**few(trained_depth=4, loss=[4.0, 3.5, 3.22, 3.2])))]
    assert "Depth 3 is already within the interval of depth 4: 3.220 against 3.200 nats." in texts


@pytest.mark.parametrize(
    ("loss", "tone", "text"),
    [
        ([4.0, 3.5, 3.3, 3.2], "good", "the loss falls from 3.500 to 3.200 nats at depth 4."),
        ([4.0, 3.5, 3.6, 3.9], "bad", "the loss rises from 3.500 to 3.900 nats at depth 4."),
        ([4.0, 3.5, 3.2, 3.9], "bad", "the loss rises from 3.500 to 3.900 nats at depth 4."),
        ([4.0, 3.5, 3.51, 3.49], "neutral", "the loss stays within its interval up to depth 4."),
    ],
)
def test_beyond_the_trained_depth(make_sweep: MakeSweep, loss: list[float], tone: str, text: str) -> None:
    found = [verdict for verdict in verdicts(make_sweep(**few(loss=loss))) if verdict.text.startswith("Beyond")]
    assert [(verdict.tone, verdict.text) for verdict in found] == [(tone, f"Beyond the trained depth of 2 {text}")]


def test_beyond_is_left_out_when_no_deeper_depth_was_scored(make_sweep: MakeSweep) -> None:
    assert not [v for v in verdicts(make_sweep(**few(trained_depth=4))) if v.text.startswith("Beyond")]


def test_depths_in_any_order_give_the_same_sentences(make_sweep: MakeSweep) -> None:
    columns = (
        "depths", "loss", "loss_low", "loss_high", "bits_per_byte", "accuracy", "change_low", "change_high",
    )  # fmt: skip
    turned = {name: list(reversed(value)) if name in columns else value for name, value in few().items()}
    assert verdicts(make_sweep(**turned)) == verdicts(make_sweep(**few()))


@pytest.mark.parametrize(
    ("xz", "tone", "text"),
    [
        (2.0, "good", "spends 15 % fewer bits than the file compressor xz -9"),
        (1.7, "bad", "does not beat the file compressor xz -9"),
        (1.0, "bad", "on the same text: 1.700 bits per byte at depth 2 against 1.000."),
    ],
)
def test_the_file_compressor(make_sweep: MakeSweep, xz: float, tone: str, text: str) -> None:
    (found,) = [verdict for verdict in verdicts(make_sweep(**few(xz_bits_per_byte=xz))) if "xz" in verdict.text]
    assert found.tone == tone
    assert text in found.text


def test_exits(make_sweep: MakeSweep) -> None:
    def said(**changes: object) -> list[str]:
        return [verdict.text for verdict in verdicts(make_sweep(**changes)) if "exit" in verdict.text]

    (text,) = said(exit_histogram=[0.5, 0.0, 0.0, 0.5], exit_threshold=0.5, exit_loss=3.3)
    assert text == (
        "At the exit threshold of 0.5 a token takes 2.50 of 4 loops on average, "
        "at a loss of 3.300 nats against 3.254 of full depth."
    )
    (text,) = said(exit_histogram=[0.002, 0.0, 0.0, 0.998], exit_threshold=0.5)
    assert text == (
        "At the exit threshold of 0.5 99.8 % of the tokens exit at loop 4: the gate does not tell them apart."
    )
    assert said(exit_histogram=None) == []


def test_few_documents_are_told(make_sweep: MakeSweep) -> None:
    assert verdicts(make_sweep(num_documents=1))[-1].text.endswith("only one document, so the intervals are rough.")
    assert not any("document" in verdict.text for verdict in verdicts(make_sweep()))


def test_a_loss_that_is_not_finite_is_all_that_is_said(make_sweep: MakeSweep) -> None:
    (only,) = verdicts(make_sweep(**few(loss=[4.0, 3.5, math.nan, math.inf])))
    assert only.tone == "bad"
    assert "at depth 3, 4" in only.text


def test_wide_intervals_of_the_losses_hide_no_paired_change(make_sweep: MakeSweep) -> None:
    """Documents differ by more than depths do: only the paired interval tells."""
    wide = few(loss_low=[0.0] * 4, loss_high=[9.0] * 4, loss=[4.0, 3.5, 3.6, 3.7])
    assert any("rises from 3.500 to 3.700 nats at depth 4" in verdict.text for verdict in verdicts(make_sweep(**wide)))


def fitted(nats: float, low: float, high: float) -> dict[str, Any]:
    """Calibrated numbers of few() with this gain."""
    four = dict.fromkeys(("loss_low", "loss_high", "bits_per_byte", "change_low", "change_high"), [1.0] * 4)
    return {"temperature": [1.2, 1.0, 1.0, 1.0], "loss": [3.0] * 4, "gain": gain(nats, low, high), **four}


@pytest.mark.parametrize(
    ("raw", "calibrated", "tone", "text"),
    [
        (
            (0.21, 0.19, 0.23), (0.15, 0.13, 0.17), "good",
            "the gain is 0.15 nats (95 % interval 0.13 to 0.17) instead of 0.21.",
        ),
        (
            (0.21, 0.19, 0.23), (0.01, -0.02, 0.04), "bad",
            "nothing clear is left of the gain: 0.01 nats (95 % interval -0.02 to 0.04). "
            "Shallow loops are only overconfident.",
        ),
        (
            (-0.21, -0.23, -0.19), (-0.3, -0.32, -0.28), "bad",
            "more loops are still worse: the gain is -0.30 nats (95 % interval -0.32 to -0.28).",
        ),
        ((0.01, -0.02, 0.04), (0.01, -0.02, 0.04), None, ""),
    ],
)  # fmt: skip
def test_what_calibration_leaves(
    make_sweep: MakeSweep, raw: tuple[float, ...], calibrated: tuple[float, ...], tone: str | None, text: str
) -> None:
    sweep = make_sweep(**few(gain=gain(*raw), calibrated=fitted(*calibrated)))
    found = [(one.tone, one.text) for one in verdicts(sweep) if one.text.startswith("Calibrated")]
    start = "Calibrated, with a temperature of its own for every depth, "
    assert found == ([(tone, start + text)] if tone else [])


@pytest.mark.parametrize(
    ("loss", "half", "harm"),
    [
        ([4.0, 3.5, 3.3, 3.2], 0.03, False),
        ([4.0, 3.15, 3.3, 3.2], 0.03, True),
        ([4.0, 3.169, 3.3, 3.2], 0.03, False),  # clear for one depth that was asked for, not for the best of three
        ([4.0, 3.19, 3.3, 3.2], 0.03, False),
    ],
)
def test_last_loops_that_do_harm(make_sweep: MakeSweep, loss: list[float], half: float, harm: bool) -> None:
    ends = {f"change_{side}": [x - loss[3] + d for x in loss] for side, d in (("low", -half), ("high", half))}
    sweep = make_sweep(**few(trained_depth=4, loss=loss, **ends))
    found = [one.text for one in verdicts(sweep) if one.text.startswith("The last loops do harm")]
    told = (
        "The last loops do harm: depth 2 is better than the trained depth 4 by 0.05 nats (95 % interval 0.02 to 0.08)."
    )
    assert found == ([told] if harm else [])


@pytest.mark.parametrize(
    ("value", "among", "sign"), [(0.031, 1, 1), (0.029, 1, 0), (0.031, 7, 0), (-0.05, 7, -1), (0.0, 1, 0)]
)
def test_a_difference_picked_among_several_must_be_clearer(value: float, among: int, sign: int) -> None:
    assert clearly(value, value - 0.03, value + 0.03, among=among) == sign
