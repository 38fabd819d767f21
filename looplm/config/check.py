"""Rules that involve several fields of a run. Each is a small function that yields what does not fit, and the remedy.

A setting that would change nothing is a fault too: whoever set it meant something else.

Rules that need the devices (does the mesh fit them?) are in `sharding.mesh`; rules that need the data (does the
vocabulary fit?) are where the data is opened.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

from looplm.config.schema import (
    Chains,
    ConcatInjection,
    DiagonalInjection,
    EmbeddingState,
    ExpectedCrossEntropy,
    FixedDepth,
    GateImprovement,
    InputState,
    Maze,
    MoE,
    NoInjection,
    Optim,
    Place,
    Run,
    Schedule,
    ScheduledDepth,
    UniformDepth,
    WeightedCrossEntropy,
)
from looplm.errors import UserError


def check(run: Run) -> Run:
    """Returns `run` unchanged, or raises one UserError that lists everything that does not fit."""
    faults = [fault for rule in RULES for fault in rule(run)]
    if faults:
        raise UserError("; ".join(faults))
    return run


def _heads(run: Run) -> Iterator[str]:
    model = run.model
    if model.head_dim is None and model.dim % model.num_heads:
        yield (
            f"model.num_heads={model.num_heads} does not divide model.dim={model.dim}; "
            f"use one of {_divisors(model.dim)} or set model.head_dim"
        )
    elif (head_dim := model.head_dim or model.dim // model.num_heads) % 2:
        yield f"the head size {head_dim} is odd; rotary positions need an even one"
    if model.num_kv_heads and model.num_heads % model.num_kv_heads:
        yield (
            f"model.num_kv_heads={model.num_kv_heads} does not divide model.num_heads={model.num_heads}; "
            f"use one of {_divisors(model.num_heads)}"
        )


def _value_embedding(run: Run) -> Iterator[str]:
    embedding, dim = run.model.value_embedding, run.model.dim
    if embedding and embedding.gate_channels > dim:
        yield (
            f"model.value_embedding.gate_channels={embedding.gate_channels} is more than model.dim={dim}; "
            "use at most that"
        )
    if embedding and any(getattr(run.model.feed_forward_of(p), "dense_layers", ()) for p in get_args(Place)):
        yield (
            "model.value_embedding with dense_layers among layers with experts is not built; "
            "use one kind of layer in a section, or model.value_embedding=null"
        )


def _batch(run: Run) -> Iterator[str]:
    data = run.data
    if data.batch_tokens % data.sequence_length:
        nearest = max(1, round(data.batch_tokens / data.sequence_length)) * data.sequence_length
        yield (
            f"data.batch_tokens={data.batch_tokens} is no multiple of data.sequence_length={data.sequence_length}; "
            f"use {nearest}"
        )
    elif (sequences := data.batch_tokens // data.sequence_length) % data.accumulation_steps:
        yield (
            f"data.accumulation_steps={data.accumulation_steps} does not divide the {sequences} sequences of a batch; "
            f"use one of {_divisors(sequences)}"
        )


def _depth(run: Run) -> Iterator[str]:
    depth, loop = run.loop.depth, run.loop
    if isinstance(depth, UniformDepth) and depth.min_loops > depth.max_loops:
        yield f"loop.depth.min_loops={depth.min_loops} is above loop.depth.max_loops={depth.max_loops}; swap them"
    if isinstance(depth, ScheduledDepth) and 0 not in depth.loops:
        yield f"loop.depth.loops={depth.loops} says nothing about the first step; add an entry for step 0"
    largest = max_loops(run)
    if largest is None and loop.backprop_loops is None:
        yield f"loop.depth.kind={depth.kind} has no largest depth; set loop.backprop_loops, e.g. {loop.num_loops}"
    if largest and loop.backprop_loops and loop.backprop_loops > largest:
        yield f"loop.backprop_loops={loop.backprop_loops} is more than the {largest} loops that run; use at most that"
    if loop.depth_per == "sequence" and isinstance(depth, FixedDepth | ScheduledDepth):
        yield f"loop.depth_per=sequence has nothing to draw with loop.depth.kind={depth.kind}; leave it at batch"
    if isinstance(depth, ScheduledDepth) and not depth.interpolate and max(depth.loops) >= run.num_steps:
        yield (
            f"loop.depth.loops={depth.loops} has an entry at step {max(depth.loops)}, and num_steps={run.num_steps} "
            "ends before it; take it out, or train longer"
        )


def _experts(run: Run) -> Iterator[str]:
    model = run.model
    for place in get_args(Place):
        key, num_layers = f"{place}_feed_forward", model.layers_of(place)
        own = getattr(model, key, None)
        if own is not None and not num_layers:
            yield f"model.{key}={own.kind} has no layer to apply to: model.{place}_layers=0; leave it at null"
        elif isinstance(moe := model.feed_forward_of(place), MoE) and num_layers:
            name = f"model.{key}" if own is not None else "model.feed_forward"
            yield from (fault.format(name=name) for fault in _layers_of(moe, place, num_layers, own is not None))
            largest = max_loops(run)
            if place == "block" and largest and moe.loop_biases > largest:
                yield (
                    f"{name}.loop_biases={moe.loop_biases} is more than the {largest} loops that run; use at most that"
                )


def _layers_of(moe: MoE, place: Place, num_layers: int, own: bool) -> Iterator[str]:
    """Of one section; {name} stands for the key."""
    if moe.experts_per_token > moe.num_experts:
        yield (
            f"{{name}}.experts_per_token={moe.experts_per_token} is more than num_experts={moe.num_experts}; "
            "use at most that"
        )
    if outside := [i for i in moe.dense_layers if i >= num_layers]:
        remedy = "take them out" if own or place == "block" else f"set model.{place}_feed_forward"
        yield f"{{name}}.dense_layers={outside}: the {place} has layers 0 to {num_layers - 1}; {remedy}"
    elif len(set(moe.dense_layers)) >= num_layers:
        yield f"{{name}}.dense_layers={list(moe.dense_layers)} leaves no layer with experts; use kind={moe.dense.kind}"
    elif list(moe.dense_layers) != sorted(set(moe.dense_layers)):
        yield f"{{name}}.dense_layers={list(moe.dense_layers)} must be ascending, each layer once"
    if moe.loop_biases and own:
        yield f"{{name}}.loop_biases={moe.loop_biases}: the {place} runs once; leave it at 0"
    if moe.balance.auxiliary_over != "sequence" and not moe.balance.auxiliary_weight:
        yield (
            f"{{name}}.balance.auxiliary_over={moe.balance.auxiliary_over} has no part in auxiliary_weight=0; "
            "leave it at sequence"
        )
    if moe.experts_per_token == moe.num_experts and (moe.balance.bias_rate or moe.capacity_factor):
        yield (
            f"{{name}}.experts_per_token={moe.experts_per_token} uses every expert for every token: there is nothing "
            "to balance or to limit; use fewer"
        )


def _input(run: Run) -> Iterator[str]:
    """Without an injection, the first state is the only way in."""
    model = run.model
    if not isinstance(model.injection, NoInjection) or isinstance(model.state_init, InputState):
        return
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


def _model(run: Run) -> Iterator[str]:
    model = run.model
    if model.norm_before_coda and not model.final_norm:
        yield "model.norm_before_coda=True applies the final norm, and model.final_norm=False; set that to True"
    if model.qk_norm_over != "head" and not (model.qk_norm and model.qk_norm_scale):
        yield (
            f"model.qk_norm_over={model.qk_norm_over} is for a norm with a scale; "
            "set model.qk_norm=True and model.qk_norm_scale=True, or leave it at head"
        )
    if model.attention_mask == "prefix":
        yield (
            "model.attention_mask=prefix needs to know where a prefix ends, and token datasets hold no prefixes; "
            "use model.attention_mask=causal, which is the same without one"
        )
    data = [source.data for source in run.data.sources] + [run.data.validation] * (run.data.validation is not None)
    if model.attention_mask == "full" and not all(getattr(part, "in_place", False) for part in data):
        yield (
            "model.attention_mask=full lets a token see the next one, which it has to predict; "
            "use model.attention_mask=causal, or tasks with in_place=true only"
        )


def _objective(run: Run) -> Iterator[str]:
    objective, window = run.objective, trained_loops(run)
    if isinstance(objective, ExpectedCrossEntropy | GateImprovement) and run.model.exit_gate is None:
        yield f"objective.kind={objective.kind} needs an exit gate; set model.exit_gate={{}} or objective=final"
    if isinstance(objective, GateImprovement) and window == 1:
        yield (
            "objective.kind=gate compares a loop with the next, and the gradient window holds 1 loop; "
            "use more of loop.num_loops and loop.backprop_loops"
        )
    if isinstance(objective, ExpectedCrossEntropy | WeightedCrossEntropy) and window is not None:
        heads = objective.sampled_heads
        if heads is not None and heads > window:
            yield (
                f"objective.sampled_heads={heads} is more than the {window} loops that are read; "
                f"use at most {window}, or null for all"
            )


def _rates(run: Run) -> Iterator[str]:
    optim, injection = run.optim, run.model.injection
    default = Optim(learning_rate=1.0)
    gate_only = isinstance(run.objective, GateImprovement)
    if run.model.exit_gate is None and optim.gate_rate != default.gate_rate:
        yield (
            f"optim.gate_rate={optim.gate_rate} has no exit gate to apply to; "
            f"set model.exit_gate={{}}, or leave it at {default.gate_rate}"
        )
    if gate_only and optim.gate_rate == 0:
        yield "optim.gate_rate=0 freezes the gate, and objective.kind=gate trains nothing else; use e.g. 1.0"
    if optim.injection_rate != default.injection_rate and (
        gate_only or not isinstance(injection, ConcatInjection | DiagonalInjection)
    ):
        reason = (
            "objective.kind=gate freezes it" if gate_only else f"model.injection={injection.kind} has no parameters"
        )
        yield f"optim.injection_rate={optim.injection_rate}: {reason}; leave it at {default.injection_rate}"
    if optim.ema_decay in (0, 1):
        what = "keeps nothing but the newest weights" if optim.ema_decay == 0 else "never leaves the first weights"
        yield f"optim.ema_decay={optim.ema_decay} {what}; use e.g. 0.999, or null for no average"


def _eval(run: Run) -> Iterator[str]:
    if run.eval.every_steps and run.data.validation is None:
        yield f"eval.every_steps={run.eval.every_steps} needs held-out data; set data.validation, or eval.every_steps=0"
    depths = run.eval.depths
    if depths is not None and (not depths or list(depths) != sorted(set(depths))):
        yield f"eval.depths={list(depths)} must be ascending, each depth once; use {sorted(set(depths)) or [1]}"


def _keep_best(run: Run) -> Iterator[str]:
    checkpoint, evaluation = run.checkpoint, run.eval
    if checkpoint.best_metric is not None and not checkpoint.keep_best:
        yield (
            f"checkpoint.best_metric={checkpoint.best_metric} has no part in checkpoint.keep_best=0; "
            "set that to 1 or more, or leave it out"
        )
    if checkpoint.keep_best and not evaluation.every_steps:
        yield (
            f"checkpoint.keep_best={checkpoint.keep_best} needs evaluations to go by; set eval.every_steps, "
            f"e.g. {checkpoint.every_steps}"
        )
    elif checkpoint.keep_best:
        depths = evaluation.depths or range(1, run.loop.num_loops + 1)
        kinds = ("", "ema_") if run.optim.ema_decay is not None else ("",)
        known = [f"eval/{kind}{name}_depth_{r}" for kind in kinds for name in ("loss", "bpb") for r in depths]
        wanted = checkpoint.best_metric or f"eval/loss_depth_{run.loop.num_loops}"
        if wanted not in known:
            yield f"checkpoint.best_metric={wanted} is not measured; use one of {', '.join(known)}"


def _schedule(run: Run) -> Iterator[str]:
    if (warmup := run.optim.schedule.warmup_steps) >= run.num_steps:
        yield (
            f"optim.schedule.warmup_steps={warmup} leaves no step of num_steps={run.num_steps} for the rest; "
            f"set optim.schedule.warmup_steps={run.num_steps // 10}, or more num_steps"
        )
    schedule, default = run.optim.schedule, Schedule()
    if schedule.decay != "wsd" and schedule.wsd_fraction != default.wsd_fraction:
        yield (
            f"optim.schedule.wsd_fraction={schedule.wsd_fraction} has no part in decay={schedule.decay}; "
            f"set optim.schedule.decay=wsd, or leave it at {default.wsd_fraction}"
        )
    if schedule.decay == "constant" and schedule.final_fraction != default.final_fraction:
        yield (
            f"optim.schedule.final_fraction={schedule.final_fraction} has no part in decay=constant; "
            f"set another optim.schedule.decay, or leave it at {default.final_fraction}"
        )


def _held_out(run: Run) -> Iterator[str]:
    validation = run.data.validation
    for source in run.data.sources:
        if isinstance(validation, str) and isinstance(source.data, str):
            if _place(validation) == _place(source.data):
                yield (
                    f"data.validation={validation} is the folder of data.train={source.data}: nothing would be held "
                    "out; give other data, or data.validation=null"
                )
        elif (
            validation is not None
            and not isinstance(validation, str)
            and _examples(validation) == _examples(source.data)
        ):
            yield (
                f"data.validation={validation.kind} has the examples of data.train: nothing would be held out; "
                f"give data.validation another {'part' if 'part' in type(validation).model_fields else 'seed'}"
            )


def _place(folder: str) -> object:
    return folder.partition("?")[0].rstrip("/") if "://" in folder else Path(folder).resolve()


def _examples(task: Any) -> Any:
    """Which examples a task has, but for how many."""
    return task.model_copy(update={"num_examples": 1}) if hasattr(task, "num_examples") else task


def _mixture(run: Run) -> Iterator[str]:
    sources = run.data.sources
    names = [source.name for source in sources]
    if not sources:
        yield "data.train=[] holds no source; name at least one"
    if len(set(names)) < len(names):
        yield f"data.train has two sources of one name, among {', '.join(names)}; every name needs to be another"
    for step in sorted({step for source in sources for step in source.changes}):
        if step >= run.num_steps:
            yield (
                f"data.train has a weight from step {step} on, and num_steps={run.num_steps} ends before it; "
                "take it out, or train longer"
            )
        elif not any(source.weight_at(step) for source in sources):
            yield f"data.train gives no source a weight at step {step}; give one of {', '.join(names)} more than 0"


def _tasks(run: Run) -> Iterator[str]:
    for task in (*(source.data for source in run.data.sources), run.data.validation):
        if isinstance(task, Chains) and task.min_hops > task.max_hops:
            yield f"min_hops={task.min_hops} of the chains is above max_hops={task.max_hops}; swap them"
        if isinstance(task, Maze) and task.min_path > task.max_path:
            yield f"min_path={task.min_path} of the mazes is above max_path={task.max_path}; swap them"


RULES: tuple[Callable[[Run], Iterator[str]], ...] = (
    _heads, _model, _value_embedding, _experts, _input, _batch, _held_out, _mixture, _tasks, _depth, _objective, _eval,
    _keep_best, _rates, _schedule,
)  # fmt: skip


def max_loops(run: Run) -> int | None:
    """The largest number of loops that a training step of this run can have; None for a law without a bound."""
    match run.loop.depth:
        case FixedDepth():
            return run.loop.num_loops
        case UniformDepth(max_loops=largest):
            return largest
        case ScheduledDepth(loops=loops):
            return max(loops.values())
        case _:
            return None


def trained_loops(run: Run) -> int | None:
    """The most loops of a step that carry a gradient; None for all of a law without a bound, which is refused."""
    return min((n for n in (run.loop.backprop_loops, max_loops(run)) if n is not None), default=None)


def _divisors(n: int) -> str:
    return ", ".join(str(d) for d in range(1, n + 1) if n % d == 0)
