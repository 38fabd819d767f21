"""The compiled train step: flat in loops and layers, and one state of memory per loop."""

from collections.abc import Callable

import jax
import pytest

from looplm.config.schema import Mesh, Run
from looplm.sharding.mesh import build_mesh
from looplm.train.program import Program

B, S, D, VOCAB = 4, 128, 128, 8192
SIZES = {
    "model.vocab_size": VOCAB,
    "model.dim": D,
    "model.num_heads": 4,
    "model.hidden_dim": 256,
    "model.exit_gate": None,
    "objective": "final",
    "data.sequence_length": S,
    "data.batch_tokens": B * S,
    "loop.remat": "loop",
}


@pytest.fixture
def compiled(tiny_run: Callable[..., Run]) -> Callable[..., jax.stages.Compiled]:
    def compile_step(**changes: object) -> jax.stages.Compiled:
        run = tiny_run(**{**SIZES, **changes})
        return Program(run, build_mesh(Mesh(), jax.devices()[:1])).lower().compile()

    return compile_step


def temporary_bytes(compiled: jax.stages.Compiled) -> int:
    return compiled.memory_analysis().temp_size_in_bytes


def test_the_program_does_not_grow_with_loops_or_layers(compiled) -> None:
    few = len(compiled(**{"loop.num_loops": 2, "model.block_layers": 4}).as_text())
    assert len(compiled(**{"loop.num_loops": 64, "model.block_layers": 4}).as_text()) == pytest.approx(few, rel=0.05)
    assert len(compiled(**{"loop.num_loops": 2, "model.block_layers": 24}).as_text()) == pytest.approx(few, rel=0.05)


@pytest.mark.slow
def test_a_loop_costs_the_memory_of_one_state(compiled) -> None:
    # With fewer loops the update of the weights is the peak, which the loops do not move.
    few, many = (temporary_bytes(compiled(**{"loop.num_loops": r, "model.block_layers": 2})) for r in (32, 64))
    assert (many - few) / 32 == pytest.approx(4 * B * S * D, rel=0.05)


@pytest.mark.parametrize("coda_layers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_losses_of_all_loops_cost_less_than_four_states_a_loop(compiled, coda_layers: int) -> None:
    # With fewer loops the update of the weights is the peak; no logits, and nothing the head reads, is kept of all.
    changes = {"model.exit_gate": {}, "objective": "expected", "model.coda_layers": coda_layers}
    few, many = (temporary_bytes(compiled(**{**changes, "loop.num_loops": r})) for r in (24, 40))
    assert (many - few) / 16 < 3.5 * (4 * B * S * D) < 4 * B * S * VOCAB / 4
