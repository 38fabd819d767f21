"""Restores checkpoints: only what verifies, onto any mesh.

Files are compared with the seal before anything is read from them; arrays are compared with their digests where they
were restored to. What differs is passed over with one line, and the next older checkpoint is tried.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from looplm.checkpoint.digest import Digest, Trees, as_text, digests, leaves_of
from looplm.checkpoint.folder import place_of, steps
from looplm.checkpoint.leaves import damaged_leaves
from looplm.checkpoint.seal import Damaged, Seal, check_files, read_seal
from looplm.checkpoint.tree import differences, kinds
from looplm.distributed.exchange import first_of_all
from looplm.errors import UserError, warn

OS_ERROR = re.compile(r"(?:OS error |os_error_code=')(\d+)")
"""How TensorStore says what the system said."""
NAMED = 3
"""Leaves that a message names."""


class Restored(NamedTuple):
    trees: dict[str, Any]
    seal: Seal
    passed_over: list[int]
    """Newer steps that are damaged."""


def to_stderr(line: str) -> None:
    if jax.process_index() == 0:
        warn(line)


class CheckpointReader:
    """Of WORKDIR/checkpoints. With several processes all of them must make the same calls."""

    def __init__(self, folder: Path, report: Callable[[str], None] = to_stderr):
        self.folder, self.report = folder, report

    def steps(self) -> list[int]:
        """Ascending; of whole checkpoints, damaged or not."""
        return steps(self.folder)

    def restore(
        self,
        abstract: Trees,
        *,
        step: int | None = None,
        accept: Callable[[Seal], None] = lambda seal: None,
        digest: Digest = digests,
    ) -> Restored:
        """Restores trees with the shardings of the abstract ones; leaves that are `...` are not read.

        Args:
            step: None takes the newest that verifies.
            accept: raises UserError for a checkpoint that is right but of no use.
            digest: `digests`, or the same compiled for these very arrays.

        Raises UserError when there is none, when none verifies, when the named one does not, or when it holds other
        arrays.
        """
        passed_over: dict[int, str] = {}
        for candidate in self._candidates(step):
            try:
                seal = self.verified(candidate, items=tuple(abstract))
                accept(seal)
                self._check_tree(seal, abstract)
                return Restored(self._read(seal, abstract, digest), seal, list(passed_over))
            except Damaged as damage:
                passed_over[candidate] = str(damage)
                if step is None:
                    self.report(f"checkpoint {candidate} is passed over: {damage}")
        raise self._none(passed_over)

    def newest_seal(self, step: int | None = None) -> Seal:
        """Of the newest checkpoint that has one, or of the named one; no other file is read, so it may not verify.

        Raises UserError when there is none.
        """
        passed_over: dict[int, str] = {}
        for candidate in self._candidates(step):
            try:
                return read_seal(place_of(self.folder, candidate), candidate)
            except Damaged as damage:
                passed_over[candidate] = str(damage)
        raise self._none(passed_over)

    def verified(self, step: int, items: tuple[str, ...] | None = None) -> Seal:
        """Returns the seal of a checkpoint whose files are what was saved; of `items` only, when given. Every process
        reads its share of the files. Raises Damaged, on all processes alike."""
        seal, fault, mistake = None, "", None
        try:
            folder = place_of(self.folder, step)
            seal = read_seal(folder, step)
            below = tuple(f"{item}/" for item in items or seal.arrays)
            wanted = [name for name in sorted(seal.files) if "/" not in name or name.startswith(below)]
            check_files(folder, seal, wanted[jax.process_index() :: jax.process_count()])
        except Damaged as damage:
            fault = f"{damage}{'' if seal is None else _affected(damaged_leaves(folder, seal, items))}"
        except UserError as error:
            mistake = error  # the same on all processes
        if mistake is not None:
            raise mistake
        if fault := first_of_all(fault):
            raise Damaged(fault)
        assert seal is not None
        return seal

    def _candidates(self, step: int | None) -> list[int]:
        found = self.steps()
        if not found:
            raise UserError(
                f"{self.folder} holds no checkpoint yet; `looplm train` saves one every checkpoint.every_steps"
            )
        if step is not None and step not in found:
            raise UserError(f"{self.folder} holds no checkpoint of step {step}; it has {found}")
        return found[::-1] if step is None else [step]

    def _none(self, passed_over: dict[int, str]) -> UserError:
        reasons = "; ".join(f"{number}: {reason}" for number, reason in passed_over.items())
        others = [number for number in self.steps() if number not in passed_over]
        remedy = f"use another one: {others}" if others else "put a copy back, or begin anew in another folder"
        return UserError(f"no checkpoint of {self.folder} that was asked for verifies ({reasons}); {remedy}")

    def _check_tree(self, seal: Seal, abstract: Trees) -> None:
        for item, tree in abstract.items():
            wanted, stored = kinds(tree), seal.kinds(item)
            if any(leaf is ... for leaf in jax.tree.leaves(tree)):
                stored = {name: kind for name, kind in stored.items() if name in wanted}
            if found := differences(stored, wanted):
                raise UserError(
                    f"checkpoint {seal.step} in {self.folder} holds other {item} than this config asks for: {found}"
                )

    def _read(self, seal: Seal, abstract: Trees, digest: Digest) -> dict[str, Any]:
        folder, trees = place_of(self.folder.absolute(), seal.step), {}
        for item, tree in abstract.items():
            args = ocp.args.PyTreeRestore(tree, ocp.checkpoint_utils.construct_restore_args(tree))
            try:
                with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
                    trees[item] = checkpointer.restore(folder / item, args=args)
            except (ValueError, OSError, KeyError) as error:  # not what a full device raises: that is no damage
                raise Damaged(f"{item} cannot be read ({first_line(error)})") from error
        self._check_arrays(seal, trees, digest)
        return trees

    def _check_arrays(self, seal: Seal, trees: Trees, digest: Digest) -> None:
        leaves = leaves_of(trees)
        found = np.asarray(digest(list(leaves.values())))
        for (item, name), words in zip(leaves, found, strict=True):
            if as_text(words) != seal.arrays[item][name].digest:
                raise Damaged(f"{item} {name} holds other values than were saved")


def _affected(leaves: list[str]) -> str:
    more = f" and {len(leaves) - NAMED} more" if len(leaves) > NAMED else ""
    return f", which affects {', '.join(leaves[:NAMED])}{more}" if leaves else ", which affects no array"


def first_line(error: BaseException) -> str:
    """The gist of an error of a library, which may go on for pages."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    reason = OS_ERROR.search(str(error))
    return f"{os.strerror(int(reason[1]))} ({lines[0][:120]})" if reason else lines[0][:200]
