"""A device that runs out of memory gives one line with remedies, and they are those of `looplm compile`."""

import io
from collections.abc import Callable
from pathlib import Path

import jax
import pytest
from rich.console import Console

from looplm.compile.compiled import compile_step
from looplm.compile.out_of_memory import explained
from looplm.compile.remedies import remedies
from looplm.config.schema import Run
from looplm.errors import UserError
from looplm.hardware import GIB
from looplm.train.memory import Memory, gib
from looplm.train.trainer import Compiled, Trainer

AT_RUN = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 17179869184 bytes.\nAllocation type: HLO temp"
AT_COMPILE = (
    "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 20.1G of 15.75G "
    "hbm.\n  reserved 1M\n  program 18.35G\n memory required for HLO temporaries (18.35G)"
)
IN_FAST_MEMORY = (
    "RESOURCE_EXHAUSTED: E1001: CompileTimeScopedVmemOom:\n"
    "Ran out of memory in memory space vmem while allocating on stack\nSee the documentation"
)


@pytest.fixture
def trainer(tiny_run: Callable[..., Run], tmp_path: Path) -> Trainer:
    run = tiny_run(**{"data.batch_tokens": 1024, "loop.remat": "none"})
    return Trainer(run, tmp_path / "run", Console(file=io.StringIO()))


def message(trainer: Trainer, text: str) -> str:
    with pytest.raises(UserError) as error, explained(trainer):
        raise jax.errors.JaxRuntimeError(text)
    return str(error.value)


def test_at_run_time_the_line_holds_the_cheapest_remedies(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer.__dict__["compiled"] = Compiled(None, None, 0.0)  # type: ignore[arg-type]
    memory = Memory(3 * GIB, 15 * GIB, 0, 0)
    monkeypatch.setattr("looplm.compile.out_of_memory.memory_of", lambda compiled: memory)
    text = message(trainer, AT_RUN)
    assert text.startswith(
        "cpu is out of memory: the step needs 18.00 GiB (Out of memory while trying to allocate 17179869184 bytes.); "
        "the cheapest remedies: --set "
    )
    assert "\n" not in text
    found = remedies(trainer.program, memory, 0)
    assert len(found) == 3
    for remedy in found:
        for setting in remedy.settings:
            assert f"--set {setting}" in text
        assert f"about {gib(remedy.predicted_bytes)}" in text


def test_at_compile_time_the_need_is_what_the_compiler_says(trainer: Trainer) -> None:
    text = message(trainer, AT_COMPILE)
    assert "the step needs 18.35 GiB" in text
    assert "the cheapest remedies: --set " in text
    assert "--set data.accumulation_steps=" in text


def test_a_lack_of_another_memory_has_a_remedy_too(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    remedy = (
        "let it use more of a TPU's vmem, LIBTPU_INIT_ARGS=--xla_tpu_scoped_vmem_limit_kib=65536, or give a device "
        "fewer tokens at a time: a larger data.accumulation_steps, or more devices"
    )
    assert message(trainer, IN_FAST_MEMORY).endswith(f"memory space vmem while allocating on stack); {remedy}")

    def give_up(*_: object) -> None:
        raise jax.errors.JaxRuntimeError(IN_FAST_MEMORY)

    monkeypatch.setattr(jax.stages.Lowered, "compile", give_up)
    with pytest.raises(UserError, match="the compiler finds no room for the step on cpu") as error:
        compile_step(trainer.program)
    assert str(error.value).endswith(remedy)


def test_another_error_stays_what_it_is(trainer: Trainer) -> None:
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), explained(trainer):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")


def test_a_real_lack_of_memory_is_recognised(trainer: Trainer) -> None:
    """An array that no address space holds."""
    with pytest.raises(UserError, match=r"out of memory.*allocat"), explained(trainer):
        jax.block_until_ready(jax.numpy.zeros((1 << 23, 1 << 23)))
