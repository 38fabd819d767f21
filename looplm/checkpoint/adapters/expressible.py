"""What a family's config.json cannot say of a model: its description is read back and compared.

So nothing is listed twice: what the reader makes of the keys that were written is what the folder means.
"""

import math
from collections.abc import Mapping
from typing import Any

from looplm.checkpoint.adapters import ADAPTERS, Adapter
from looplm.config.schema import Loop, Model, MoE
from looplm.errors import UserError

OF_TRAINING = (
    "init.", "dtype", "attention_backend", "exit_gate.initial_exit_probability", "injection.init",
    "injection.initial_decay", "injection.initial_keep",
    "read_out.init", "attention.entropy_weight", "feed_forward.backend", "feed_forward.capacity_factor",
    "feed_forward.balance.auxiliary", "feed_forward.balance.entropy_weight", "feed_forward.balance.z_loss_weight",
)  # fmt: skip
"""Settings that change no number which stored weights give."""


def unsaid(model: Model, loop: Loop, adapter: Adapter[Any]) -> dict[str, tuple[Any, Any]]:
    """Settings that the family's folder would mean otherwise: {key: (ours, what it would mean)}; empty when the folder
    says all. Raises UserError where it can say nothing at all."""
    assert adapter.describe is not None, "a family that is written"
    read = adapter.config.understand(adapter.describe(model, loop, 1))
    ours, theirs = counted(model), counted(adapter.model(read))
    found = {
        f"model.{key}": (ours.get(key), theirs.get(key))
        for key in dict.fromkeys((*ours, *theirs))
        if not _equal(ours.get(key), theirs.get(key))
    }
    if loop.num_loops != (meant := adapter.loop(read).num_loops):
        found["loop.num_loops"] = (loop.num_loops, meant)
    return found


def family_of(model: Model, loop: Loop, kind: str | None = None) -> tuple[str, Adapter[Any]]:
    """The family whose folder says all of a model, and its kind.

    Args:
        kind: the one that is wanted; the first that can say all when None.

    Raises UserError that names what it, or the one that comes nearest, cannot say.
    """
    written = {name: adapter for name, adapter in ADAPTERS.items() if adapter.describe is not None}
    if kind is not None and kind not in written:
        raise UserError(f"kind={kind!r} is none that looplm writes; use one of {', '.join(written)}")
    refused: dict[str, str] = {}
    fewest = math.inf
    for name, adapter in written.items() if kind is None else [(kind, written[kind])]:
        try:
            found = unsaid(model, loop, adapter)
        except UserError as error:
            refused.setdefault(name, str(error))
            continue
        if not found:
            return name, adapter
        told = ", ".join(f"{key}={ours!r} (there {theirs!r})" for key, (ours, theirs) in found.items())
        refused = {name: told, **refused} if len(found) < fewest else {**refused, name: told}
        fewest = min(fewest, len(found))
    nearest, reasons = next(iter(refused.items()))
    others = "" if kind is not None else "; no other family comes nearer"
    raise UserError(f"a folder of kind {nearest!r} cannot say {reasons}{others}")


def counted(model: Model) -> dict[str, Any]:
    """The leaves of a model that decide what is computed, each in one way: sizes that follow from others are filled in,
    and what is of a part that is not there is left out."""
    fields: dict[str, Any] = {"num_kv_heads": model.kv_heads, "head_dim": model.head_size}
    if not model.qk_norm:
        fields |= {"qk_norm_over": "head", "qk_norm_scale": True}
    if not model.prelude_layers or model.prelude_feed_forward == model.feed_forward:
        fields["prelude_feed_forward"] = None
    if not model.coda_layers or model.coda_feed_forward == model.feed_forward:
        fields["coda_feed_forward"] = None
    moe = model.feed_forward
    if isinstance(moe, MoE):
        expert_dim = moe.expert_dim or model.hidden_dim
        fields["feed_forward"] = moe.model_copy(update={"expert_dim": expert_dim})
        if not moe.dense_layers:
            fields["hidden_dim"] = expert_dim
    tree = model.model_copy(update=fields).model_dump(mode="json")
    return {key: value for key, value in _flat(tree).items() if not key.startswith(OF_TRAINING)}


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def _equal(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, float) and isinstance(theirs, float):
        return math.isclose(ours, theirs, rel_tol=1e-9)
    return bool(ours == theirs)
