"""`looplm checkpoint ls | verify | rm`."""

import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from looplm.checkpoint import folder as names
from looplm.checkpoint.leaves import damaged_leaves
from looplm.checkpoint.reader import CheckpointReader
from looplm.checkpoint.seal import Damaged, read_seal
from looplm.errors import UserError


def list_checkpoints(workdir: Path, console: Console) -> None:
    """One line for every checkpoint, from the seals alone, and for everything that is none."""
    folder = existing(workdir)
    for step in names.steps(folder):
        try:
            seal = read_seal(names.place_of(folder, step), step)
        except Damaged as damage:
            console.print(f"{step}  damaged: {damage}")
            continue
        scores = "".join(f"  {name} {value:.4f}" for name, value in sorted(seal.metrics.items()))
        told = f"{step}  {seal.num_bytes / 1e6:.1f} MB  saved {seal.saved_at}{scores}"
        console.print(f"{told}{_leads_to(folder / str(step))}")
    for name in names.damaged(folder):
        console.print(f"{name}  passed over by a resume; `looplm checkpoint rm {workdir} --damaged` removes it")
    for name in names.remains(folder):
        console.print(f"{name}  being written, or left by a save that was cut off; the next `looplm train` removes it")


def verify_checkpoints(workdir: Path, step: int | None, console: Console) -> None:
    """Reads everything and compares it with the digests. Raises UserError when something is damaged."""
    folder = existing(workdir)
    reader = CheckpointReader(folder)
    found = reader.steps()
    if not found or (step is not None and step not in found):
        raise UserError(f"{folder} holds no checkpoint{f' of step {step}; it has {found}' if step is not None else ''}")
    bad = []
    for number in found if step is None else [step]:
        try:
            seal = reader.verified(number)
            if leaves := damaged_leaves(names.place_of(folder, number), seal):
                raise Damaged(f"{', '.join(leaves)} holds other values than were saved")
            console.print(f"{number}  right: {len(seal.files)} files, {seal.num_bytes / 1e6:.1f} MB")
        except Damaged as damage:
            bad.append(number)
            console.print(f"{number}  damaged: {damage}")
    if bad:
        raise UserError(f"{folder}: {bad} of {len(found)} checkpoints are damaged; `looplm train` passes over them")


def remove_checkpoints(workdir: Path, steps: Sequence[int], damaged: bool, console: Console) -> None:
    """Removes the named ones, and with `damaged` those that a resume has set aside; of a link, the link alone.

    Raises UserError, before anything is removed, for one that is not there and for the last one that verifies.
    """
    folder = existing(workdir)
    reader = CheckpointReader(folder)
    found = reader.steps()
    if missing := [step for step in steps if step not in found]:
        raise UserError(f"{folder} holds no checkpoint of step {missing}; it has {found}")
    if not steps and not damaged:
        raise UserError(f"no step was named; {folder} has {found}, and --damaged removes what a resume has set aside")
    if steps and not any(_is_right(reader, step) for step in reversed(found) if step not in steps):
        raise UserError(
            f"without {list(steps)} no checkpoint of {folder} verifies; remove the folder itself if that is meant"
        )
    for name in [*map(str, steps), *(names.damaged(folder) if damaged else [])]:
        target = _leads_to(folder / name)
        try:
            names.remove(folder, name)
        except OSError as error:
            raise UserError(f"{folder / name} cannot be removed ({error.strerror}); mend its permissions") from error
        console.print(f"removed {folder / name}{target and f'{target}, which is left as it is'}")


def existing(workdir: Path) -> Path:
    """The folder of checkpoints. Raises UserError when there is none."""
    folder = workdir / "checkpoints"
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; is {workdir} a run directory of `looplm train`?")
    return folder


def _leads_to(path: Path) -> str:
    """What is added about a link."""
    return f", a link to {os.readlink(path)}" if path.is_symlink() else ""


def _is_right(reader: CheckpointReader, step: int) -> bool:
    try:
        reader.verified(step)
    except (Damaged, UserError):
        return False
    return True
