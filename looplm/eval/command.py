"""`looplm eval`: a depth sweep of a run's checkpoint, a reasoner's answers, exits, KV policies and first states, to the
screen and to WORKDIR/eval."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import jax
from rich.console import Console

from looplm.data.folder import obstacle, write_result
from looplm.data.tokenizer.official import tokenizer_of
from looplm.errors import UserError, warn
from looplm.eval.answers import measure_answers, segments_of
from looplm.eval.classes import check_classes, measure_classes
from looplm.eval.depth_sweep import depth_sweep
from looplm.eval.exit_choice import parse_swept
from looplm.eval.exit_sweep import TOLERANCES, measure_exits
from looplm.eval.exit_tokens import ExitTokens
from looplm.eval.first_states import check_first_states, measure_first_states
from looplm.eval.kv import add_to, measure_kv, parse_policies
from looplm.eval.memory import check_memory, measure_memory
from looplm.eval.restarts import check_restarts, measure_restarts, settling_loops
from looplm.eval.score import Scorer
from looplm.eval.subject import open_subject, run_of
from looplm.eval.tables import (
    print_answers,
    print_classes,
    print_exits,
    print_first_states,
    print_kv,
    print_memory,
    print_restarts,
)
from looplm.metrics.answers import KIND as ANSWERS
from looplm.metrics.classes import KIND as CLASSES
from looplm.metrics.exit_sweep import KIND as EXITS
from looplm.metrics.first_states import KIND as FIRST_STATES
from looplm.metrics.kv_loss import KIND as KV
from looplm.metrics.memory_loss import KIND as MEMORY
from looplm.metrics.restarts import KIND as RESTARTS
from looplm.metrics.stored import Measured
from looplm.metrics.sweep import SOME_DEPTHS, Sweep

M = TypeVar("M", bound=Measured)


def evaluate(
    workdir: Path,
    *,
    step: int | None = None,
    depths: str | None = None,
    data: str | None = None,
    out: Path | None = None,
    ema: bool = False,
    exits: Sequence[str] = (),
    excess: float | None = None,
    kv: Sequence[str] = (),
    first_states: int = 0,
    restarts: int = 0,
    memory: Sequence[int] = (),
    classes: bool = False,
    console: Console | None = None,
    shown: Callable[[Sweep], None] = lambda result: None,
) -> Sweep:
    """Scores held-out data at all depths on all devices and saves the result: all of a dataset, and of a task, which
    has examples without end, eval.max_batches batches.

    Args:
        depths: comma-separated, e.g. `1,2,4,8`; the run's when left out. A result that lacks depths of the sweep that
            is there has a name of its own, and is not in the report.
        data: folder or address of a token dataset, or a task by its name or as JSON; the run's held-out data when left
            out. The result of other data has a name of its own, and is not in the report.
        out: a second place for the JSON of the depths.
        ema: score the moving average of the weights.
        exits: exit rules, measured in the same pass: with a threshold, e.g. `gate:0.9`; without one its thresholds are
            swept; `all`.
        excess: nats per token that an exit rule may cost, of which the loosest threshold is looked for.
        kv: KV policies that are measured as they write, under each of `exits` that has a threshold; `all`.
        first_states: how many first states are compared, of a model that draws them; 0: none.
        restarts: how many tries every example of a task gets, over the most of `depths`, of a model that draws first
            states or noise; 0: none.
        memory: lengths of a memory over the sequence that are compared, beside that of training and none.
        console: where it is said that a part is read, that the report keeps what it has, and what exits, policies and
            first states gave.
        shown: called with the result as soon as it is known: before it is saved, which may fail.

    Where WORKDIR/eval cannot be written (a run of somebody else), a line says so before the work, and the result is in
    `out` alone. Raises UserError, before the work, for a folder that is no run, a wrong depth list, rule or policy,
    data that does not fit, or an `out` that cannot be written.
    """
    run = run_of(workdir)
    wanted = parse_depths(depths) if depths is not None else run.eval.depths or tuple(range(1, run.loop.num_loops + 1))
    if out is not None and out.is_dir():
        raise UserError(f"--out {out} is a folder; name a file, e.g. {out / 'depth_sweep.json'}")
    rules = parse_swept(exits, run)
    policies = parse_policies(kv, run, [name for name, rule in rules.items() if rule is not None])
    if first_states:
        check_first_states(run.model, first_states)
    lengths = check_memory(run, memory) if memory else []
    if classes:
        check_classes(run.model)
    keeps = _can_be_kept(workdir / "eval", out)
    subject = open_subject(workdir, run, step=step, data=data, ema=ema, console=console)
    if restarts:
        check_restarts(run.model, restarts, is_task=subject.is_task)
    R = run.loop.num_loops
    score = Scorer(subject.lm, subject.mesh, max(*wanted, R if rules else 1), tempered=True, signals=bool(rules))
    gathered = ExitTokens(R, subject.num_batches, subject.batch_size * run.data.sequence_length) if rules else None
    result = depth_sweep(
        score,
        subject.params,
        subject.held_out,
        batch_size=subject.batch_size,
        depths=wanted,
        trained_depth=R,
        step=subject.step,
        ema=ema,
        max_batches=subject.max_batches,
        with_xz=True,
        exits=gathered,
    )
    shown(result)
    keep = partial(_keep, workdir / "eval", other=subject.other, keeps=keeps, console=console)
    if jax.process_index() == 0:
        _keep_sweep(result, workdir / "eval", subject.other, depths is not None, out, console, keeps)
    if subject.is_task and (segments := segments_of(run, wanted, asked=depths is not None)):
        answers = measure_answers(subject, segments)
        keep(ANSWERS, answers, print_answers)
    if gathered is not None:
        tolerances = (*TOLERANCES, *((excess,) if excess is not None else ()))
        found = measure_exits(gathered.tokens(), rules, subject, tolerances)
        keep(EXITS, found, print_exits)
    if policies:
        losses = measure_kv(subject, policies)
        keep(KV, add_to(workdir / "eval", losses, subject.other), print_kv)
    if first_states:
        states = measure_first_states(subject, first_states)
        keep(FIRST_STATES, states, print_first_states)
    if restarts:
        tries = measure_restarts(subject, restarts, max(wanted), settling_loops(run, max(wanted)))
        keep(RESTARTS, tries, print_restarts)
    if lengths:
        keep(MEMORY, measure_memory(subject, lengths), print_memory)
    if classes:
        keep(CLASSES, measure_classes(subject, tokenizer_of(workdir, run)), print_classes)
    return result


def _can_be_kept(folder: Path, out: Path | None) -> bool:
    """Whether results can be written into the folder; if not, that is said, as far as it shows beforehand.

    Raises UserError when `out` cannot be written.
    """
    if jax.process_index() != 0:
        return False
    if out is not None and (reason := obstacle(out)):
        raise UserError(f"--out {out} cannot be written: {reason}; name another file")
    if reason := obstacle(folder / "depth_sweep.json"):
        where = f"written to {out} only" if out is not None else "shown and not kept; --out FILE keeps it elsewhere"
        warn(f"{folder} cannot be written ({reason}): the result is {where}")
    return not reason


def parse_depths(text: str) -> tuple[int, ...]:
    """`1,2,4` -> (1, 2, 4), ascending. Raises UserError."""
    try:
        depths = sorted({int(part) for part in text.split(",")})
    except ValueError:
        depths = [0]
    if depths[0] < 1:
        raise UserError(f"--depths {text!r} is no comma-separated list of loop counts of at least 1, e.g. 1,2,4,8")
    return tuple(depths)


def _keep_sweep(
    result: Sweep,
    folder: Path,
    other: str | None,
    keeps_depths: bool,
    out: Path | None,
    console: Console | None,
    keeps: bool,
) -> None:
    """Save the depths in the run, if it can be, and in `out`."""
    if keeps:
        try:
            path = result.save(folder, other_data=other, keeps_depths=keeps_depths)
        except OSError as error:
            warn(f"{folder} could not be written ({error.strerror}); the result is not there")
        else:
            if console is not None and path.stem.endswith(SOME_DEPTHS):
                told = f"saved as {path}: the sweep of step {result.step} that is there has other depths too"
                console.print(told, soft_wrap=True)
    if out is not None:
        try:
            write_result(out, result.as_file())
        except OSError as error:
            raise UserError(f"--out {out} could not be written: {error.strerror}; name another file") from error


def _keep(
    folder: Path,
    kind: str,
    result: M,
    show: Callable[[M, Console], None],
    *,
    other: str | None,
    keeps: bool,
    console: Console | None,
) -> None:
    """Save what else was measured in the run, if it can be, and show it."""
    if keeps and jax.process_index() == 0:
        try:
            result.save(folder, kind, other_data=other)
        except OSError as error:
            warn(f"{folder} could not be written ({error.strerror}); {kind} of step {result.step} are not there")
    if console is not None:
        show(result, console)
