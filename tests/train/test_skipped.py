"""What is said of an update that was not made."""

import math

import pytest

from looplm.train.skipped import SHOWN, _few, why

GOOD = {"train/loss": 2.0, "train/grad_norm": 1.0}


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"train/loss": math.nan}, "loss nan is not finite"),
        ({"train/grad_norm": math.inf}, "gradient norm inf is not finite"),
        ({"optim/max_loss": 1.5}, "loss 2 is above 1.5"),
        ({"optim/max_loss": 2.0, "optim/max_grad_norm": 0.5}, "gradient norm 1 is above 0.5"),
        (
            {"train/loss": 9.0, "optim/max_loss": 3.0, "train/grad_norm": math.nan},
            "loss 9 is above 3 and gradient norm nan is not finite",
        ),
    ],
)
def test_the_reason_names_what_was_bad_and_its_limit(changed: dict[str, float], reason: str) -> None:
    assert why(GOOD | changed) == reason


def test_so_many_windows_are_shown_and_no_more() -> None:
    assert _few([*range(SHOWN)]) == ", ".join(map(str, range(SHOWN)))
    assert _few([*range(SHOWN + 1)]) == ", ".join(map(str, range(SHOWN))) + ", ..."
