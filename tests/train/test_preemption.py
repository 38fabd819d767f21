"""Processes stop after the same step, whatever else is done between steps."""

import signal
from collections.abc import Callable

import jax
import pytest

from looplm.config.schema import Run
from looplm.sharding.mesh import build_mesh
from looplm.train.preemption import Preemption


def test_several_agree_one_step_after_a_signal(tiny_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    """The answers outlive a step after which everything was waited for: with a save at every step there is no other."""
    mesh = build_mesh(tiny_run().mesh)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    agreed = []
    with Preemption(mesh) as preemption:
        for step in range(1, 6):
            if step == 3:
                signal.raise_signal(signal.SIGTERM)
            preemption.ask()
            agreed.append(preemption.agreed())
    assert agreed == [False, False, False, True, True]
    assert preemption.reason == "SIGTERM"
