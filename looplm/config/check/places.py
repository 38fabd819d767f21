"""Parts that look at places of a sequence other than through attention: in front of the tokens, or over all of them."""

from collections.abc import Iterator

from looplm.config.check.rule import Rules
from looplm.config.schema import (
    ConvReLU,
    ConvSwiGLU,
    ExpertChoice,
    NeverHalting,
    Run,
    SequenceMLP,
    TrajectoryConditioning,
)


def _whole_sequences(run: Run) -> Iterator[str]:
    """Some parts need all places of a sequence on one device."""
    model, mesh = run.model, run.mesh
    parts: dict[str, tuple[str, ...]] = {}
    if model.front is not None:
        parts["model.front"] = ("context", "tensor")
    if isinstance(model.attention, SequenceMLP):
        parts["model.attention=sequence_mlp"] = ("context", "tensor")
    if isinstance(model.halting, ExpertChoice):
        parts["model.halting=expert_choice"] = ("context", "tensor")
    if model.sequence_gate is not None:
        parts["model.sequence_gate"] = ("context", "tensor")
    if isinstance(model.conditioning, TrajectoryConditioning):
        parts["model.conditioning=trajectory"] = ("context", "tensor")
    for key in ("feed_forward", "prelude_feed_forward", "coda_feed_forward"):
        if isinstance(kind := getattr(model, key), ConvSwiGLU | ConvReLU):
            # A branch has its sequence split over `context` alone, and inner channels over `tensor`.
            wide = isinstance(kind, ConvReLU)
            parts[f"model.{key}={kind.kind}"] = ("context", "tensor") if wide else ("context",)
    recipes = [recipe.settings for recipe in run.recipes]
    for part, axes in parts.items():
        for axis in axes:
            if getattr(mesh, axis) != 1 or any(f"mesh.{axis}" in settings for settings in recipes):
                yield f"{part} needs whole sequences on a device, and mesh.{axis} splits them; use mesh.{axis}=1"


def _front(run: Run) -> Iterator[str]:
    model, front = run.model, run.model.front
    if front is None:
        return
    if not model.front_places:
        yield "model.front has no places; give it ids, learned or zeros, or leave it out"
    if model.attention_mask == "prefix":
        yield "model.attention_mask=prefix has a prefix of its own; use full or causal with model.front"
    if model.value_embedding is not None:
        yield ("model.value_embedding is of tokens, and places of model.front are none; leave one of them out")
    if not isinstance(model.halting, NeverHalting):
        yield (
            f"model.halting={model.halting.kind} is of tokens, and places of model.front are none; use never, or leave "
            "model.front out"
        )


def _sequence_mlp(run: Run) -> Iterator[str]:
    model, length = run.model, run.data.sequence_length
    if not isinstance(model.attention, SequenceMLP):
        return
    places = length + model.front_places
    if model.attention.length != places:
        front = f" and {model.front_places} of model.front" if model.front_places else ""
        yield (
            f"model.attention.length={model.attention.length} must be the {length} places of data.sequence_length"
            f"{front}; use {places}"
        )
    if model.attention_mask != "full" or model.attention_window is not None:
        yield (
            "model.attention=sequence_mlp lets every token see all; set model.attention_mask=full and no "
            "model.attention_window"
        )
    if model.norm != "unit":
        yield (
            f"model.norm={model.norm} has a scale for every channel, and norms around model.attention=sequence_mlp are "
            "over places; use model.norm=unit"
        )
    unused = [
        name
        for name, set_ in (
            ("qk_norm", model.qk_norm),
            ("qk_bias", model.qk_bias),
            ("value_embedding", model.value_embedding),
            ("num_kv_heads", model.num_kv_heads),
        )
        if set_
    ]
    if unused:
        yield f"model.{unused[0]} has no part in model.attention=sequence_mlp, which has no heads; leave it out"


RULES: Rules = (_whole_sequences, _front, _sequence_mlp)
