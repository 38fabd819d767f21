"""Other people's checkpoints: one file per family says how its config and tensor names map to ours."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from looplm.checkpoint.adapters import huginn, moe, moeut, ouro, parcae
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
    "ParcaeConfig": Adapter(parcae.model, parcae.loop, parcae.tensors, parcae.OBJECTIVE, parcae.IGNORED),
    "RobertCsordas/moeut": Adapter(moeut.model, moeut.loop, moeut.tensors, moeut.OBJECTIVE),
    "mixtral": Adapter(moe.mixtral, moe.loop, moe.mixtral_tensors, moe.OBJECTIVE),
    "olmoe": Adapter(moe.olmoe, moe.loop, moe.hf_tensors, moe.OBJECTIVE),
    "qwen3_moe": Adapter(moe.qwen3_moe, moe.loop, moe.hf_tensors, moe.OBJECTIVE),
}
"""By the kind that the official config.json names."""
KIND_KEYS = ("model_type", "_class_name", "repo")
"""Where it does so: Hugging Face's key; Parcae's own; MoEUT's repository, whose code writes no config."""


def kind_of(config: dict[str, Any]) -> str | None:
    """None for a config.json that is no official one."""
    return next((config[key] for key in KIND_KEYS if key in config), None)


def find(config: dict[str, Any]) -> Adapter:
    """The adapter of an official config. Raises UserError for a family that is not known."""
    kind = kind_of(config)
    if not isinstance(kind, str) or kind not in ADAPTERS:
        raise UserError(f"a model of kind {kind!r} is not known; looplm reads {', '.join(ADAPTERS)}")
    return ADAPTERS[kind]
