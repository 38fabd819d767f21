"""What is minimised, at which rates, and what is measured and kept on the way."""

from collections.abc import Iterator

from looplm.config.check.depth import max_loops, trained_loops
from looplm.config.check.rule import Rules
from looplm.config.schema import (
    AddInjection,
    DecidedCrossEntropy,
    DeepSupervision,
    Distillation,
    ElasticCrossEntropy,
    ExpectedCrossEntropy,
    GateImprovement,
    NoInjection,
    Optim,
    RelativePositions,
    Run,
    Schedule,
    SelfDistillation,
    SupervisedRows,
    WeightedCrossEntropy,
)


def _objective(run: Run) -> Iterator[str]:
    objective, window = run.objective, trained_loops(run)
    if (
        isinstance(objective, ExpectedCrossEntropy | GateImprovement | DecidedCrossEntropy)
        and run.model.exit_gate is None
    ):
        yield f"objective.kind={objective.kind} needs an exit gate; set model.exit_gate={{}} or objective=final"
    if isinstance(objective, GateImprovement | DecidedCrossEntropy) and window == 1:
        yield (
            f"objective.kind={objective.kind} compares a loop with the next, and the gradient window holds 1 loop; "
            "use more of loop.num_loops and loop.backprop_loops"
        )
    if isinstance(objective, ExpectedCrossEntropy | WeightedCrossEntropy) and window is not None:
        heads = objective.sampled_heads
        if heads is not None and heads > window:
            yield (
                f"objective.sampled_heads={heads} is more than the {window} loops that are read; "
                f"use at most {window}, or null for all"
            )


def _sequence_gate(run: Run) -> Iterator[str]:
    asks = {
        "objective.kind=supervised": isinstance(run.objective, SupervisedRows),
        "carry.kind=segments": isinstance(run.carry, DeepSupervision),
    }
    for who, is_asked in asks.items():
        if is_asked and run.model.sequence_gate is None:
            yield f"{who} needs a gate that speaks for a whole sequence; set model.sequence_gate={{}}"
    if all(asks.values()) or not asks["carry.kind=segments"]:
        return
    yield (
        f"carry.kind=segments asks the sequence gate when a row may go, and objective.kind={run.objective.kind} does "
        "not train it; use objective=supervised"
    )


def _teacher(run: Run) -> Iterator[str]:
    asks, given = isinstance(run.objective, Distillation), run.teacher is not None
    if asks and not given:
        yield "objective.kind=distill learns from a teacher; set teacher=FOLDER, a run or an official model"
    if given and not asks:
        yield f"teacher={run.teacher} has no part in objective.kind={run.objective.kind}; use distill, or leave it out"
    if run.teacher_loops is not None and not given:
        yield f"teacher_loops={run.teacher_loops} has no teacher to run; set teacher=FOLDER, or leave it out"
    if asks and run.optim.guard.sdc_check:
        yield (
            f"optim.guard.sdc_check={run.optim.guard.sdc_check} computes a gradient without the teacher of "
            "objective.kind=distill; use 0"
        )
    if isinstance(run.objective, SelfDistillation) and trained_loops(run) == 1:
        yield (
            "objective.kind=self_distill compares earlier loops with the last, and the gradient window holds 1 loop; "
            "use more of loop.num_loops and loop.backprop_loops"
        )


def _elastic(run: Run) -> Iterator[str]:
    objective, window, largest = run.objective, trained_loops(run), max_loops(run)
    if not isinstance(objective, ElasticCrossEntropy):
        return
    if window == 1:
        yield (
            "objective.kind=elastic draws a loop before the last, and the gradient window holds 1 loop; "
            "use more of loop.num_loops and loop.backprop_loops"
        )
    elif largest is not None and objective.min_loops >= largest:
        yield (
            f"objective.min_loops={objective.min_loops} leaves no loop before the last to draw, and at most {largest} "
            f"run; use at most {largest - 1}"
        )
    if run.loop.depth_per == "sequence":
        yield (
            "objective.kind=elastic draws one loop for all sequences, and loop.depth_per=sequence has them end at "
            "different ones; use loop.depth_per=batch"
        )
    if objective.steps is not None and objective.steps > run.num_steps:
        yield (
            f"objective.steps={objective.steps} are more than num_steps={run.num_steps}, so that the predictions of "
            "the last loop never take the place of labels; use at most that, or null"
        )


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
    if checkpoint.keep_best and checkpoint.every_steps is None:
        yield (
            f"checkpoint.keep_best={checkpoint.keep_best} needs saves at steps that are evaluated; "
            "set checkpoint.every_steps to a multiple of eval.every_steps"
        )
    elif checkpoint.keep_best and not evaluation.every_steps:
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


def _rates(run: Run) -> Iterator[str]:
    optim, injection = run.optim, run.model.injection
    default = Optim(learning_rate=1.0)
    gate_only = isinstance(run.objective, GateImprovement)
    if run.model.exit_gate is run.model.sequence_gate is None and optim.gate_rate != default.gate_rate:
        yield (
            f"optim.gate_rate={optim.gate_rate} has no exit gate to apply to; "
            f"set model.exit_gate={{}}, or leave it at {default.gate_rate}"
        )
    if gate_only and optim.gate_rate == 0:
        yield "optim.gate_rate=0 freezes the gate, and objective.kind=gate trains nothing else; use e.g. 1.0"
    if optim.injection_rate != default.injection_rate and (
        gate_only or isinstance(injection, NoInjection | AddInjection)
    ):
        reason = (
            "objective.kind=gate freezes it" if gate_only else f"model.injection={injection.kind} has no parameters"
        )
        yield f"optim.injection_rate={optim.injection_rate}: {reason}; leave it at {default.injection_rate}"
    if optim.ema_decay in (0, 1):
        what = "keeps nothing but the newest weights" if optim.ema_decay == 0 else "never leaves the first weights"
        yield f"optim.ema_decay={optim.ema_decay} {what}; use e.g. 0.999, or null for no average"


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


def _keys(run: Run) -> Iterator[str]:
    keys, dense = run.sharding.keys, run.model.attention_backend == "dense"
    may_split = run.mesh.context != 1 or any("mesh.context" in recipe.settings for recipe in run.recipes)
    if keys != "auto" and not may_split:
        yield f"sharding.keys={keys} is about sequences over devices; set mesh.context, or sharding.keys=auto"
    if keys == "ring" and (dense or isinstance(run.model.positions, RelativePositions)):
        what = "model.attention_backend=dense" if dense else "model.positions=relative"
        yield f"sharding.keys=ring has no device hold all scores, and {what} does; use sharding.keys=gathered"


RULES: Rules = (_objective, _sequence_gate, _teacher, _elastic, _eval, _keep_best, _rates, _schedule, _keys)
