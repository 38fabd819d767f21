"""`looplm eval`: a depth sweep of a run's checkpoint, to the screen and to WORKDIR/eval."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import jax
from rich.console import Console
from rich.table import Table

from looplm.checkpoint.hf_folder import is_official
from looplm.config.load import from_json, override
from looplm.config.schema import Mesh, Run
from looplm.data.folder import obstacle, write_result
from looplm.data.held_out import HeldOut, open_held_out
from looplm.data.tokenizer.official import tokenizer_of
from looplm.errors import UserError, warn
from looplm.eval.depth_sweep import depth_sweep
from looplm.eval.score import Scorer
from looplm.eval.weights import restore_weights
from looplm.masking import mask
from looplm.metrics.sweep import SOME_DEPTHS, Sweep
from looplm.model.functional import FunctionalLM
from looplm.sharding.mesh import build_mesh, check_fit

EXAMPLE = '{"kind": "p_hop", "seed": 1}'


def evaluate(
    workdir: Path,
    *,
    step: int | None = None,
    depths: str | None = None,
    data: str | None = None,
    out: Path | None = None,
    ema: bool = False,
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
        out: a second place for the JSON.
        ema: score the moving average of the weights.
        console: where it is said that a part is read, or that the report keeps what it has.
        shown: called with the result as soon as it is known: before it is saved, which may fail.

    Where WORKDIR/eval cannot be written (a run of somebody else), a line says so before the work, and the result is in
    `out` alone. Raises UserError, before the work, for a folder that is no run, a wrong depth list, data that does not
    fit, or an `out` that cannot be written.
    """
    if is_official(workdir):
        raise UserError(
            f"{workdir} is an official model and no run with data to be scored on; start a run with "
            f"--set init_from={workdir}, or use looplm.load"
        )
    run = from_json(workdir / "config.json")
    wanted = parse_depths(depths) if depths is not None else run.eval.depths or tuple(range(1, run.loop.num_loops + 1))
    if out is not None and out.is_dir():
        raise UserError(f"--out {out} is a folder; name a file, e.g. {out / 'depth_sweep.json'}")
    keeps = _can_be_kept(workdir / "eval", out)
    held_out = open_held_out(_data(run, workdir, data), run.data)
    held_out.check_tokenizer(tokenizer_of(workdir, run))

    mesh = build_mesh(Mesh(data=-1, fsdp=1))
    rows = run.data.batch_tokens // run.data.sequence_length // run.data.accumulation_steps
    batch_size = -(-rows // mesh.size) * mesh.size
    check_fit(mesh, run.model, micro_batch=batch_size, sequence_length=run.data.sequence_length)
    max_batches = run.eval.max_batches if held_out.dataset is None else None
    if console is not None and max_batches is not None and max_batches * batch_size < len(held_out.windows):
        console.print(
            f"of the {held_out.num_documents} examples of {held_out.name}, {max_batches} batches of {batch_size} "
            "windows are scored (the run's eval.max_batches), spread over all",
            soft_wrap=True,
        )
    lm = FunctionalLM(run.model)
    params, step = restore_weights(workdir, run, lm, lm.abstract(mesh), step=step, ema=ema)
    result = depth_sweep(
        Scorer(lm, mesh, max(wanted)),
        params,
        held_out,
        batch_size=batch_size,
        depths=wanted,
        trained_depth=run.loop.num_loops,
        step=step,
        ema=ema,
        max_batches=max_batches,
        with_xz=True,
    )
    shown(result)
    if jax.process_index() != 0:
        return result
    if keeps:
        other = _other(held_out, run, data)
        try:
            path = result.save(workdir / "eval", other_data=other, keeps_depths=depths is not None)
        except OSError as error:
            warn(f"{workdir / 'eval'} could not be written ({error.strerror}); the result is not there")
        else:
            if console is not None and path.stem.endswith(SOME_DEPTHS):
                told = f"saved as {path}: the sweep of step {step} that is there has other depths too"
                console.print(told, soft_wrap=True)
    if out is not None:
        try:
            write_result(out, result.as_file())
        except OSError as error:
            raise UserError(f"--out {out} could not be written: {error.strerror}; name another file") from error
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


def print_sweep(result: Sweep, console: Console) -> None:
    """The table of all depths, the gain of looping, and the yardstick."""
    table = Table("depth", "loss (nats)", "95 % interval", "bits/byte", "accuracy")
    rows = zip(
        result.depths,
        result.loss,
        result.loss_low,
        result.loss_high,
        result.bits_per_byte,
        result.accuracy,
        strict=True,
    )
    for depth, loss, low, high, bits, accuracy in rows:
        name = f"{depth} (trained)" if depth == result.trained_depth else str(depth)
        table.add_row(
            name, f"{loss:.4f}", f"{low:.4f} .. {high:.4f}", "" if bits is None else f"{bits:.3f}", f"{accuracy:.3f}"
        )
    weights = f"step {result.step}{', averaged weights' * result.ema}"
    console.print(f"held-out data: {result.num_documents} documents, {result.num_tokens} tokens, {weights}")
    console.print(table)
    if (gain := result.gain) is not None:
        direction, sign = ("lower", 1) if gain.nats >= 0 else ("higher", -1)
        low, high = sorted((sign * gain.low, sign * gain.high))
        interval = f"95 % interval {low:.4f} .. {high:.4f}, bootstrap over documents"
        console.print(
            f"depth {gain.to_depth} against depth {gain.from_depth}: {abs(gain.nats):.4f} nats {direction} "
            f"({interval if result.num_documents > 1 else 'one document: no interval'})",
            soft_wrap=True,
        )
    if result.exit_histogram is not None:
        shares = ", ".join(f"{t}: {share:.1%}" for t, share in enumerate(result.exit_histogram, start=1))
        console.print(
            f"exit gate at {result.exit_threshold}: mean depth {result.expected_depth:.2f} with loss "
            f"{result.exit_loss:.4f}; tokens that leave after loop {shares}",
            soft_wrap=True,
        )
    if result.xz_bits_per_byte is not None:
        console.print(f"xz -9 on the same bytes: {result.xz_bits_per_byte:.3f} bits/byte")


def _data(run: Run, workdir: Path, data: str | None) -> object:
    if data is not None:
        try:
            given = json.loads(data) if data.startswith("{") else data
        except json.JSONDecodeError as error:
            raise UserError(f"--data {data} is not valid JSON ({error}); e.g. --data '{EXAMPLE}'") from None
        return override(run, {"data.validation": given}).data.validation
    if run.data.validation is None:
        raise UserError(
            f"the run in {workdir} names no held-out data (data.validation); give --data DIR, or a task, "
            f"e.g. --data '{EXAMPLE}'"
        )
    return run.data.validation


def _other(held_out: HeldOut, run: Run, data: str | None) -> str | None:
    """The fingerprint of `held_out` when the run has other held-out data. Where these are gone, they are what is given:
    data may have moved since, and an address that was stored without its password cannot be opened."""
    own = run.data.validation
    if data is None or own is None or mask(data) == own:
        return None
    try:
        of_the_run = _identity(open_held_out(own, run.data))
    except UserError:
        return None
    given = _identity(held_out)
    return None if of_the_run == given else given


def _identity(held_out: HeldOut) -> str:
    if held_out.dataset is not None:
        return held_out.dataset.fingerprint
    return hashlib.sha256(held_out.windows.fingerprint.encode()).hexdigest()
