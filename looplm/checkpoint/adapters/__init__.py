"""Other people's checkpoints: one file per family says how its config and tensor names map to ours."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from looplm.checkpoint.adapters import huginn, ouro
from looplm.checkpoint.adapters.base import Official
from looplm.config.schema import Loop, Model, Objective
from looplm.errors import UserError


@dataclass(frozen=True)
class Adapter:
    """How to read a family of official checkpoints."""

    model: Callable[[dict[str, Any]], Model]
    loop: Callable[[dict[str, Any]], Loop]
    tensors: Callable[[Model], list[Official]]
    objective: Objective
    """What it was trained with."""
    ignored: tuple[str, ...] = ()
    """Stored tensors that are no parameters."""


ADAPTERS = {
    "ouro": Adapter(ouro.model, ouro.loop, ouro.tensors, ouro.OBJECTIVE),
    "huginn_raven": Adapter(huginn.model, huginn.loop, huginn.tensors, huginn.OBJECTIVE, huginn.IGNORED),
}
"""By `model_type` of the official config.json."""


def find(config: dict[str, Any]) -> Adapter:
    """The adapter of an official config. Raises UserError for a family that is not known."""
    kind = config.get("model_type")
    if kind not in ADAPTERS:
        raise UserError(f"model_type={kind!r} is not known; looplm reads {', '.join(ADAPTERS)}")
    return ADAPTERS[kind]
