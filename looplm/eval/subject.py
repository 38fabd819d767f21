"""What an evaluation measures: the weights of a checkpoint, and held-out data."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import jax
from rich.console import Console

from looplm.checkpoint.hf_folder import is_official
from looplm.config.load import from_json, override
from looplm.config.schema import Mesh, Run
from looplm.data.held_out import HeldOut, open_held_out
from looplm.data.tokenizer.official import tokenizer_of
from looplm.errors import UserError
from looplm.eval.weights import restore_weights
from looplm.masking import mask
from looplm.model.functional import FunctionalLM, Params
from looplm.sharding.mesh import build_mesh, check_fit

EXAMPLE = '{"kind": "p_hop", "seed": 1}'


@dataclass(frozen=True)
class Subject:
    run: Run
    lm: FunctionalLM
    mesh: jax.sharding.Mesh
    params: Params
    """Laid out over the mesh."""
    step: int
    ema: bool
    held_out: HeldOut
    batch_size: int
    """Sequences in one forward pass."""
    max_batches: int | None
    """None: all of the data are read."""
    other: str | None
    """The fingerprint of data that are not the run's own."""

    @property
    def num_batches(self) -> int:
        """Batches that are read."""
        every = -(-len(self.held_out.windows) // self.batch_size)
        return every if self.max_batches is None else min(every, self.max_batches)

    @property
    def is_task(self) -> bool:
        """Whether the data are examples with answers."""
        return self.held_out.dataset is None


def run_of(workdir: Path) -> Run:
    """Return the config of a run. Raises UserError for a folder that is no run."""
    if is_official(workdir):
        raise UserError(
            f"{workdir} is an official model and no run with data to be scored on; start a run with "
            f"--set init_from={workdir}, or use looplm.load"
        )
    return from_json(workdir / "config.json")


def open_subject(
    workdir: Path, run: Run, *, step: int | None, data: str | None, ema: bool, console: Console | None
) -> Subject:
    """Open the data and restore the weights; arguments as of `evaluate`.

    Raises UserError for data or weights that are not there, or do not fit.
    """
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
    other = _other(held_out, run, data)
    return Subject(run, lm, mesh, params, step, ema, held_out, batch_size, max_batches, other)


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
