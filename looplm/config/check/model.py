"""The architecture: sizes that go together, and parts that are used."""

from collections.abc import Iterator

from looplm.config.check.depth import max_loops
from looplm.config.check.divisors import divisors
from looplm.config.check.rule import Rules
from looplm.config.schema import (
    EmbeddingState,
    InputState,
    LearnedPositions,
    NoInjection,
    OwnCore,
    RampScaling,
    Records,
    RelativePositions,
    RotaryPositions,
    Run,
    TwoSpeedCore,
    VectorConditioning,
    YarnScaling,
)


def _heads(run: Run) -> Iterator[str]:
    model = run.model
    if model.head_dim is None and model.dim % model.num_heads:
        yield (
            f"model.num_heads={model.num_heads} does not divide model.dim={model.dim}; "
            f"use one of {divisors(model.dim)} or set model.head_dim"
        )
    elif not isinstance(model.positions, RotaryPositions):
        pass
    elif (head_dim := model.head_size) % 2:
        name = f"model.head_dim={head_dim}"
        if model.head_dim is None:
            name = f"model.dim={model.dim} over model.num_heads={model.num_heads} is a head of {head_dim} dims, which"
        yield f"{name} is odd; rotary positions need an even one"
    elif not model.rope.turned(head_dim):
        yield (
            f"model.rope.fraction={model.rope.fraction} of a head of {head_dim} dims leaves no pair to turn; "
            "use more, e.g. 1.0"
        )
    scaling = model.rope.scaling
    if isinstance(scaling, RampScaling) and scaling.low_frequency_factor >= scaling.high_frequency_factor:
        yield (
            f"model.rope.scaling.low_frequency_factor={scaling.low_frequency_factor} is not below "
            f"high_frequency_factor={scaling.high_frequency_factor}, and the ramp lies between them; "
            "use e.g. 1.0 and 4.0"
        )
    if isinstance(scaling, YarnScaling) and scaling.slow_turns >= scaling.fast_turns:
        yield (
            f"model.rope.scaling.slow_turns={scaling.slow_turns} is not below fast_turns={scaling.fast_turns}, and the "
            "ramp lies between them; use e.g. 1.0 and 32.0"
        )
    if model.num_kv_heads and model.num_heads % model.num_kv_heads:
        yield (
            f"model.num_kv_heads={model.num_kv_heads} does not divide model.num_heads={model.num_heads}; "
            f"use one of {divisors(model.num_heads)}"
        )


def _model(run: Run) -> Iterator[str]:
    model = run.model
    if model.norm_before_coda and not model.final_norm:
        yield "model.norm_before_coda=True applies the final norm, and model.final_norm=False; set that to True"
    if model.qk_norm_over != "head" and not (model.qk_norm and model.qk_norm_scale):
        yield (
            f"model.qk_norm_over={model.qk_norm_over} is for a norm with a scale; "
            "set model.qk_norm=True and model.qk_norm_scale=True, or leave it at head"
        )
    data = [source.data for source in run.data.sources] + [run.data.validation] * (run.data.validation is not None)
    in_place = [getattr(part, "in_place", isinstance(part, Records)) for part in data]
    if model.attention_mask == "prefix" and any(in_place):
        yield (
            "model.attention_mask=prefix lets the tokens before an answer see one another, and data that are answered "
            "in place have none; use model.attention_mask=full"
        )
    if model.attention_mask == "prefix" and run.mesh.context != 1:
        yield (
            f"model.attention_mask=prefix needs whole sequences on a device, and mesh.context={run.mesh.context} "
            "splits them; use mesh.context=1"
        )
    if model.attention_mask == "full" and not all(in_place) and run.data.masking is None:
        yield (
            "model.attention_mask=full lets a token see the next one, which it has to predict; "
            "use model.attention_mask=causal, or data.masking, or records, or tasks with in_place=true, only"
        )


def _value_embedding(run: Run) -> Iterator[str]:
    embedding, dim = run.model.value_embedding, run.model.dim
    if embedding and embedding.gate_channels > dim:
        yield (
            f"model.value_embedding.gate_channels={embedding.gate_channels} is more than model.dim={dim}; "
            "use at most that"
        )


def _input(run: Run) -> Iterator[str]:
    """Without an injection, the first state is the only way in."""
    model = run.model
    if not isinstance(model.injection, NoInjection) or isinstance(model.state_init, InputState):
        return
    if isinstance(model.core, TwoSpeedCore) and isinstance(model.core.low_init, InputState):
        return
    if isinstance(model.core, OwnCore):
        return  # it may have a way in of its own
    if not isinstance(model.state_init, EmbeddingState):
        yield (
            f"model.injection=none with model.state_init={model.state_init.kind} leaves the tokens out of the model; "
            "use another injection, or model.state_init=input"
        )
    elif model.prelude_layers or model.prelude_norm:
        yield (
            "model.injection=none with model.state_init=embedding leaves the prelude out of the model; "
            "use another injection, or model.state_init=input"
        )


def _positions(run: Run) -> Iterator[str]:
    positions, length = run.model.positions, run.data.sequence_length
    places = length + run.model.front_places
    if isinstance(positions, LearnedPositions) and positions.length < places:
        front = f" and the {run.model.front_places} places of model.front" if run.model.front_places else ""
        yield (
            f"model.positions.length={positions.length} is less than data.sequence_length={length}{front}; use at "
            f"least {places if front else 'that'}"
        )
    if isinstance(positions, RelativePositions) and run.model.attention_mask != "causal":
        yield (
            f"model.positions=relative knows no distance to keys that follow, and model.attention_mask="
            f"{run.model.attention_mask} lets tokens see them; use model.attention_mask=causal, or other positions"
        )


WHAT = {"norm_loops": "scales", "attention_loops": "an attention", "feed_forward.router_loops": "routers"}
"""What every loop has for itself, by the setting that says how many have it."""


def _own_loops(run: Run) -> Iterator[str]:
    largest = max_loops(run)
    for name, loops in run.model.own_loops.items():
        if run.loop.depth_per == "sequence":
            yield (
                f"model.{name}={loops} gives loops {WHAT[name]} of their own, and loop.depth_per=sequence has "
                f"sequences at different loops at a time; use loop.depth_per=batch, or model.{name}=null"
            )
        if largest is not None and loops > largest:
            yield (
                f"model.{name}={loops} is more than the {largest} loops that run, and the rest would not learn; use "
                f"at most {largest}"
            )
    if run.model.attention_loops is not None and run.model.adapter is not None:
        yield (
            f"model.attention_loops={run.model.attention_loops} and model.adapter both give loops parameters of their "
            "own; leave one of them out"
        )


def _norm_loops(run: Run) -> Iterator[str]:
    loops = run.model.norm_loops
    if loops is not None and run.model.norm == "unit" and not (run.model.qk_norm and run.model.qk_norm_scale):
        yield f"model.norm_loops={loops} is for norms with scales, and model.norm=unit has none; leave it out"


def _conditioning(run: Run) -> Iterator[str]:
    if isinstance(run.model.conditioning, VectorConditioning) and run.loop.depth_per == "sequence":
        yield (
            "model.conditioning=vector gives every loop a vector of its own, and loop.depth_per=sequence has sequences "
            "at different loops at a time; use loop.depth_per=batch"
        )


RULES: Rules = (_heads, _model, _value_embedding, _input, _positions, _own_loops, _norm_loops, _conditioning)
