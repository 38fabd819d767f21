"""What halting rules and latent thoughts do not go with is refused by name."""

from collections.abc import Callable

import pytest

from looplm.config.check import check
from looplm.config.schema import Run
from looplm.errors import UserError

LATENTS = {
    "model.core": {"kind": "latent_feedback", "token": 1},
    "model.final_norm": False,
    "model.norm_at_loop_end": True,
    "model.exit_gate": None,
    "objective": "final",
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model.halting": {"kind": "act"}, "objective": {"kind": "weighted"}},
            "model.halting=act says after the last loop what is read of a token, and objective=weighted reads every "
            "loop by itself; use objective=final, or model.halting=never",
        ),
        (
            {"model.halting": {"kind": "expert_choice", "capacities": [0.5, 1.0]}},
            "model.halting.capacities=(0.5, 1.0) grow, and a loop takes tokens of the loop before alone; let them fall",
        ),
        *(
            (
                {
                    "model.halting": {"kind": "expert_choice", "capacities": [1.0, 0.5], "gathers": True},
                    "objective": {"kind": "final"},
                    "loop.unroll": True,
                    **changes,
                },
                f"model.halting.gathers=true {reason}",
            )
            for changes, reason in (
                ({"loop.unroll": False}, "has loops of several shapes, and one is scanned; set loop.unroll=true"),
                (
                    {"loop.depth": {"kind": "uniform", "max_loops": 3}},
                    "needs a depth that never changes; use loop.depth=fixed, and no growth",
                ),
                (
                    {"loop.backprop_loops": 1},
                    "needs every loop written out, and with loop.backprop_loops=1 of 3 the first are not; leave it out",
                ),
                *(
                    ({name: value}, f"cannot be with {part}; leave one of them out")
                    for name, value, part in (
                        ("model.attention_window", 4, "model.attention_window=4"),
                        ("model.positions", {"kind": "relative"}, "model.positions=relative"),
                    )
                ),
            )
        ),
        (
            {"model.halting": {"kind": "token_choice", "loops": 99}, "objective": {"kind": "final"}},
            "model.halting=token_choice gives a token up to 99 loops, and at most 3 run; let its loops be 3",
        ),
        *(
            (
                LATENTS | changes,
                f"model.core=latent_feedback does not go with this: {told}",
            )
            for changes, told in (
                (
                    {"model.prelude_layers": 1},
                    "a prelude has read the latents before they are filled; use model.prelude_layers=0",
                ),
                (
                    {"model.final_norm": True},
                    "what is fed back has had the norm that the head reads; use model.final_norm=false",
                ),
                ({"model.halting": {"kind": "act"}}, "every token runs all loops; use model.halting=never"),
                (
                    {"loop.backprop_loops": 2},
                    "gradients flow through all latents; use loop.backprop_loops=null and loop.backprop_growth=null",
                ),
                (
                    {"loop.depth": {"kind": "uniform", "max_loops": 3}},
                    "every row needs its loops; use loop.depth=fixed",
                ),
                ({"mesh.context": 2}, "a device needs whole sequences; use mesh.data or mesh.fsdp"),
            )
        ),
        (
            LATENTS
            | {"data.train": {"kind": "graphs", "stage": 4}, "model.core": {"kind": "latent_feedback", "token": 3}},
            "data.train has examples of 4 latents, and 3 loops fill 2; use 5 in loop.num_loops, and in loop.depth from "
            "the step on at which it is read",
        ),
        (
            LATENTS | {"data.train": {"kind": "graphs", "stage": 2}},
            "model.core.token=1 is not the latent of data.train; use 3",
        ),
    ],
)
def test_what_a_loop_cannot_be_with_is_named(tiny_run: Callable[..., Run], changes: dict, message: str) -> None:
    with pytest.raises(UserError) as error:
        check(tiny_run(**changes))
    assert str(error.value) == message


def test_latent_thoughts_fit(tiny_run: Callable[..., Run]) -> None:
    run = tiny_run(**LATENTS)
    assert check(run) is run
