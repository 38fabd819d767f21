"""What a step holds, and what a program gets of a device."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from looplm.hardware import GIB, find
from looplm.train.memory import Memory, available_bytes, memory_line, memory_of


def test_a_v5e_gives_a_program_15_and_three_quarters_gib() -> None:
    device = find("TPU v5 lite")
    assert device is not None
    assert available_bytes(device) / GIB == pytest.approx(15.75, abs=0.01)
    assert "3.74 GiB free" in memory_line(Memory(10 * GIB, 2 * GIB, 0, 0), device)
    assert "0.26 GiB too much" in memory_line(Memory(10 * GIB, 6 * GIB, 0, 0), device)


@pytest.mark.parametrize(("outputs", "more"), [(1000, 300), (700, 0), (650, 0)])
def test_what_takes_the_place_of_an_argument_is_counted_once(outputs: int, more: int) -> None:
    """Compilers round: what is written in place may be larger than all outputs."""
    counted = SimpleNamespace(
        argument_size_in_bytes=5000, temp_size_in_bytes=90, output_size_in_bytes=outputs, alias_size_in_bytes=700,
        generated_code_size_in_bytes=7,
    )  # fmt: skip
    compiled: Any = SimpleNamespace(memory_analysis=lambda: counted)
    assert memory_of(compiled) == Memory(arguments=5000, temporaries=90, outputs=more, code=7)


@pytest.mark.parametrize("donated", [(), (0,)])
def test_the_compiler_counts_a_donated_argument_once(donated: tuple[int, ...]) -> None:
    x = jnp.zeros(1024)
    memory = memory_of(jax.jit(lambda x: x + 1, donate_argnums=donated).lower(x).compile())
    assert (memory.arguments, memory.outputs) == (4096, 0 if donated else 4096)
