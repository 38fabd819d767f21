"""Other people's checkpoints: one file per family says how its config and tensor names map to ours."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np

from looplm.checkpoint.adapters import huginn, moe, moeut, ouro, parcae
from looplm.checkpoint.adapters.base import Official
from looplm.checkpoint.adapters.config import OfficialConfig
from looplm.config.schema import Loop, Model, Objective
from looplm.errors import UserError

Config = TypeVar("Config", bound=OfficialConfig)


@dataclass(frozen=True)
class Adapter(Generic[Config]):
    """How to read a family of official checkpoints."""

    config: type[Config]
    """Accounts for every key of its config.json."""
    model: Callable[[Config], Model]
    loop: Callable[[Config], Loop]
    tensors: Callable[[Model], list[Official]]
    objective: Objective
    """What it was trained with."""
    buffers: Mapping[str, Callable[[Model, tuple[int, ...]], np.ndarray]] = field(default_factory=dict)
    """Stored tensors that follow from the config: what each must hold, by its stored shape."""


ADAPTERS: dict[str, Adapter[Any]] = {
    "ouro": Adapter(ouro.OuroConfig, ouro.model, ouro.loop, ouro.tensors, ouro.OBJECTIVE),
    "huginn_raven": Adapter(
        huginn.HuginnConfig, huginn.model, huginn.loop, huginn.tensors, huginn.OBJECTIVE, huginn.BUFFERS
    ),
    "ParcaeConfig": Adapter(
        parcae.ParcaeConfig, parcae.model, parcae.loop, parcae.tensors, parcae.OBJECTIVE, parcae.BUFFERS
    ),
    "RobertCsordas/moeut": Adapter(moeut.MoEUTConfig, moeut.model, moeut.loop, moeut.tensors, moeut.OBJECTIVE),
    "mixtral": Adapter(moe.MixtralConfig, moe.mixtral, moe.loop, moe.mixtral_tensors, moe.OBJECTIVE),
    "olmoe": Adapter(moe.OlmoeConfig, moe.olmoe, moe.loop, moe.hf_tensors, moe.OBJECTIVE),
    "qwen3_moe": Adapter(moe.Qwen3MoeConfig, moe.qwen3_moe, moe.loop, moe.hf_tensors, moe.OBJECTIVE),
}
"""By the kind that the official config.json names."""
KIND_KEYS = ("model_type", "_class_name", "repo")
"""Where it does so: Hugging Face's key; Parcae's own; MoEUT's repository, whose code writes no config."""


def kind_of(config: dict[str, Any]) -> str | None:
    """None for a config.json that is no official one."""
    return next((config[key] for key in KIND_KEYS if key in config), None)


def find(config: dict[str, Any]) -> Adapter[Any]:
    """The adapter of an official config. Raises UserError for a family that is not known."""
    kind = kind_of(config)
    if not isinstance(kind, str) or kind not in ADAPTERS:
        raise UserError(f"a model of kind {kind!r} is not known; looplm reads {', '.join(ADAPTERS)}")
    return ADAPTERS[kind]
