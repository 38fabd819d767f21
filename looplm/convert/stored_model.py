"""The model of a run's checkpoint, to be written in another form: its weights are read one by one."""

from pathlib import Path
from typing import NamedTuple

from looplm.checkpoint.folder import checkpoint_of, place_of
from looplm.checkpoint.hf_folder import is_official
from looplm.checkpoint.reader import CheckpointReader
from looplm.checkpoint.seal import CONFIG_FILE, Damaged, Seal
from looplm.checkpoint.stored_rows import StoredRows
from looplm.config.load import from_json
from looplm.config.schema import Run
from looplm.convert.averaged import Rows, averaged_rows
from looplm.errors import UserError
from looplm.eval.weights import check_average


class StoredModel(NamedTuple):
    """What a checkpoint holds."""

    run: Run
    root: Path
    """The run directory, with its tokenizer."""
    seal: Seal
    rows: Rows
    """Reads the weights."""


def stored_model(workdir: Path, *, step: int | None, ema: bool) -> StoredModel:
    """Opens a checkpoint whose bytes are those that were saved.

    Args:
        step: which one; the newest that verifies when None.
        ema: take the moving average of the weights.

    Raises UserError for a folder that is no run, and for weights that are in two parts.
    """
    if is_official(workdir):
        raise UserError(f"{workdir} is an official model already, and no run; copy it")
    root, named = checkpoint_of(workdir)
    seal = verified(CheckpointReader(root / "checkpoints"), named if step is None else step, with_state=ema)
    checkpoint = place_of(root / "checkpoints", seal.step)
    run = from_json(checkpoint / CONFIG_FILE)
    if ema:
        check_average(run, workdir)
    if run.model.adapter is not None and run.model.adapter.rank:
        raise UserError(
            f"{workdir} has an adapter beside its weights; make one model of them with `looplm adapter merge {workdir} "
            "OUT` and export that, or export the adapter alone with `looplm adapter export`"
        )
    rows = averaged_rows(run, checkpoint, seal) if ema else StoredRows(checkpoint, seal)
    return StoredModel(run, root, seal, rows)


def verified(reader: CheckpointReader, step: int | None, *, with_state: bool = False) -> Seal:
    """The seal of the checkpoint that is asked for, or the newest that is what was saved.

    with_state: whether the optimizer's state has to be, too.
    """
    reasons, items = {}, ("params", "opt_state") if with_state else ("params",)
    for candidate in reversed(reader.steps()) if step is None else [step]:
        try:
            return reader.verified(candidate, items=items)
        except Damaged as damage:
            reasons[candidate] = str(damage)
    told = "; ".join(f"{number}: {reason}" for number, reason in reasons.items())
    raise UserError(f"no checkpoint of {reader.folder} that was asked for verifies ({told or 'there is none'})")
