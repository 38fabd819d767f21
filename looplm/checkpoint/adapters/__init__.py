"""Other people's checkpoints: one file per family says how its config and tensor names map to ours."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np

from looplm.checkpoint.adapters import (
    albert,
    dense,
    hrm_text,
    huginn,
    moe,
    moeut,
    ouro,
    parcae,
    puzzles,
    transformer_xl,
)
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
    describe: Callable[[Model, Loop, int], dict[str, Any]] | None = None
    """The config.json of a model that is looped so and takes sequences of a length; what the family cannot say is left
    out, see `expressible`. None for a family that is read alone."""
    copies: Mapping[str, str] = field(default_factory=dict)
    """Where the head is tied: tensors that some folders store a second time, and which ones they must equal."""


ADAPTERS: dict[str, Adapter[Any]] = {
    "ouro": Adapter(ouro.OuroConfig, ouro.model, ouro.loop, ouro.tensors, ouro.OBJECTIVE, describe=ouro.describe),
    "huginn_raven": Adapter(
        huginn.HuginnConfig, huginn.model, huginn.loop, huginn.tensors, huginn.OBJECTIVE, huginn.BUFFERS,
        huginn.describe,
    ),
    "ParcaeConfig": Adapter(
        parcae.ParcaeConfig, parcae.model, parcae.loop, parcae.tensors, parcae.OBJECTIVE, parcae.BUFFERS
    ),
    "RobertCsordas/moeut": Adapter(moeut.MoEUTConfig, moeut.model, moeut.loop, moeut.tensors, moeut.OBJECTIVE),
    "llama": Adapter(
        dense.LlamaConfig, dense.llama, dense.loop, dense.tensors, dense.OBJECTIVE, describe=dense.describe_llama
    ),
    "nanbeige": Adapter(
        dense.NanbeigeConfig, dense.nanbeige, dense.nanbeige_loop, dense.tensors, dense.OBJECTIVE,
        describe=dense.describe_nanbeige,
    ),
    "qwen3": Adapter(
        dense.Qwen3Config, dense.qwen3, dense.loop, dense.tensors, dense.OBJECTIVE, describe=dense.describe_qwen3
    ),
    "olmo2": Adapter(
        dense.Olmo2Config, dense.olmo2, dense.loop, dense.olmo2_tensors, dense.OBJECTIVE, describe=dense.describe_olmo2
    ),
    "mixtral": Adapter(
        moe.MixtralConfig, moe.mixtral, moe.loop, moe.mixtral_tensors, moe.OBJECTIVE, describe=moe.describe_mixtral
    ),
    "olmoe": Adapter(
        moe.OlmoeConfig, moe.olmoe, moe.loop, moe.hf_tensors, moe.OBJECTIVE, describe=moe.describe_olmoe
    ),
    "qwen3_moe": Adapter(
        moe.Qwen3MoeConfig, moe.qwen3_moe, moe.loop, moe.hf_tensors, moe.OBJECTIVE, describe=moe.describe_qwen3_moe
    ),
    "HierarchicalReasoningModel_ACTV1": Adapter(
        puzzles.HRMConfig, puzzles.hrm, puzzles.loop, puzzles.tensors, puzzles.OBJECTIVE
    ),
    "TinyRecursiveReasoningModel_ACTV1": Adapter(
        puzzles.TRMConfig, puzzles.trm, puzzles.loop, puzzles.tensors, puzzles.OBJECTIVE
    ),
    "kimiyoung/transformer-xl pytorch": Adapter(
        transformer_xl.TransformerXLConfig, transformer_xl.model, transformer_xl.loop, transformer_xl.tensors,
        transformer_xl.OBJECTIVE, transformer_xl.BUFFERS,
    ),
    "URM": Adapter(puzzles.URMConfig, puzzles.urm, puzzles.urm_loop, puzzles.tensors, puzzles.OBJECTIVE),
    "hrm_text": Adapter(
        hrm_text.HrmTextConfig, hrm_text.model, hrm_text.loop, hrm_text.tensors, hrm_text.OBJECTIVE
    ),
    "albert": Adapter(
        albert.AlbertConfig, albert.model, albert.loop, albert.tensors, albert.OBJECTIVE, describe=albert.describe,
        copies=albert.COPIES,
    ),
}  # fmt: skip
"""By the kind that the official config.json names."""
KIND_KEYS = ("model_type", "_class_name", "repo", "arch")
"""Where it does so: Hugging Face's key; Parcae's own; MoEUT's repository, whose code writes no config; the place of the
class of HRM and its followers, `file@class`."""


def kind_of(config: dict[str, Any]) -> str | None:
    """None for a config.json that is no official one."""
    kind = next((config[key] for key in KIND_KEYS if key in config), None)
    return kind.rpartition("@")[2] if isinstance(kind, str) else kind


def find(config: dict[str, Any]) -> Adapter[Any]:
    """The adapter of an official config. Raises UserError for a family that is not known."""
    kind = kind_of(config)
    if not isinstance(kind, str) or kind not in ADAPTERS:
        raise UserError(f"a model of kind {kind!r} is not known; looplm reads {', '.join(ADAPTERS)}")
    return ADAPTERS[kind]
