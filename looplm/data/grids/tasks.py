"""Folders of tasks like those of ARC: demonstrations are learnt, questions of held-out tasks are asked.

Every task and every augmentation of it is a puzzle with an id of its own, and what is known of a task is its id: a
model that is trained on the demonstrations of a held-out task is asked its questions under the same ids.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from looplm.data.grids.augmentation import Augmentation, drawn
from looplm.data.grids.encoding import CANVAS, VOCAB_SIZE, encode
from looplm.data.records.writer import PartWriter, new_folder, write_identifiers, write_json
from looplm.errors import UserError

QUESTIONS_FILE = "test_puzzles.json"
"""The held-out tasks as ARC writes them, for who scores the answers."""
_TRIES = 5
"""So many augmentations are drawn for every one that is wanted, since some are the same."""

Pair = tuple[np.ndarray, np.ndarray | None]
"""A grid of colours and the grid that belongs to it, uint8; None where nobody has told."""


@dataclass(frozen=True)
class Task:
    demonstrations: list[Pair]
    questions: list[Pair]

    def to_json(self) -> dict[str, Any]:
        """The task as ARC writes it."""

        def write(grid: np.ndarray, answer: np.ndarray | None) -> dict[str, Any]:
            return {"input": grid.tolist()} | ({} if answer is None else {"output": answer.tolist()})

        return {
            "train": [write(*pair) for pair in self.demonstrations],
            "test": [write(*pair) for pair in self.questions],
        }


def write_tasks(
    out: Path,
    train: Mapping[str, Task],
    test: Mapping[str, Task],
    *,
    augment: int,
    seed: int,
    canvas: int = CANVAS,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Make a folder of records.

    Args:
        train: tasks of which all that is answered is learnt.
        test: tasks of which the demonstrations are learnt and the questions asked.
        augment: augmentations of every task; fewer where there are not so many.
        canvas: rows and columns of the canvas. Demonstrations lie anywhere on it, one of every puzzle in the corner as
            questions do.

    Raises UserError when a task is in both, and when `out` is there.
    """
    if both := sorted(train.keys() & test.keys()):
        raise UserError(f"task {both[0]} is in --train and in --test: its answers would be learnt; leave it out of one")
    names: list[str] = []
    with new_folder(out) as folder:
        with PartWriter(folder / "train", canvas**2) as learnt, PartWriter(folder / "test", canvas**2) as asked:
            for name, task in (*train.items(), *test.items()):
                puzzles = list(variants(task, augment, _rng(seed, name)))
                ids = range(len(names) + 1, len(names) + 1 + len(puzzles))
                names.extend(name if done is None else done.name(name) for done, _ in puzzles)
                rng, told = _rng(seed, f"{name} placed"), [each.demonstrations for _, each in puzzles]
                if name in test:
                    _add(asked, ids, [_encoded(each.questions, canvas) for _, each in puzzles])
                else:
                    told = [[*each.demonstrations, *_answered(each.questions)] for _, each in puzzles]
                _add(learnt, ids, [_encoded(pairs, canvas, rng) for pairs in told])
            for part in (learnt, asked):
                part.finish(vocab_size=VOCAB_SIZE, num_ids=len(names) + 1)
        write_identifiers(folder, names)
        write_json(folder / QUESTIONS_FILE, {name: task.to_json() for name, task in test.items()})
    report(
        f"{len(train) + len(test)} tasks, {len(names)} puzzles with an id each; {learnt.num_examples} examples to "
        f"learn from and {asked.num_examples} questions"
    )


def variants(task: Task, count: int, rng: np.random.Generator) -> Iterator[tuple[Augmentation | None, Task]]:
    """Yield the task and up to `count` augmentations of it, all different."""
    yield None, task
    seen = {_digest(task)}
    for done in drawn(_TRIES * count, rng):
        if len(seen) > count:
            return
        other = Task(_changed(task.demonstrations, done), _changed(task.questions, done))
        if (digest := _digest(other)) not in seen:
            seen.add(digest)
            yield done, other


def _changed(pairs: list[Pair], done: Augmentation) -> list[Pair]:
    return [(done.apply(grid), None if answer is None else done.apply(answer)) for grid, answer in pairs]


def _digest(task: Task) -> bytes:
    """Equal for the same pairs in any order."""
    pairs = [
        b"".join(bytes(grid.shape) + grid.tobytes() for grid in pair if grid is not None)
        for pair in (*task.demonstrations, *task.questions)
    ]
    return hashlib.blake2b(b"|".join(sorted(pairs)), digest_size=16).digest()


def _answered(pairs: list[Pair]) -> list[Pair]:
    return [pair for pair in pairs if pair[1] is not None]


def _encoded(pairs: list[Pair], canvas: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """Inputs and labels of pairs, (2, pairs, cells) uint8. With an rng all but one of them are placed anywhere."""
    rows_2PC = np.zeros((2, len(pairs), canvas**2), np.uint8)
    in_corner = None if rng is None else rng.integers(len(pairs))
    for number, (grid, answer) in enumerate(pairs):
        place = (0, 0)
        if rng is not None and number != in_corner:
            largest = np.maximum(grid.shape, grid.shape if answer is None else answer.shape)
            place = tuple(rng.integers(canvas + 1 - largest).tolist())
        rows_2PC[0, number] = encode(grid, canvas, place)
        if answer is not None:
            rows_2PC[1, number] = encode(answer, canvas, place)
    return rows_2PC


def _add(writer: PartWriter, ids: range, puzzles: list[np.ndarray]) -> None:
    inputs_NC, labels_NC = np.concatenate(puzzles, axis=1)
    writer.add(inputs_NC, labels_NC, examples_P=[rows.shape[1] for rows in puzzles], ids_P=ids)


def _rng(seed: int, purpose: str) -> np.random.Generator:
    """Of a task alone: what else is in the folder changes nothing in it."""
    digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))
