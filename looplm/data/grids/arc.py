"""The public files of ARC: one task a file, or all tasks in a file with the answers in another beside it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from looplm.data.grids.augmentation import COLOURS
from looplm.data.grids.encoding import CANVAS
from looplm.data.grids.tasks import Pair, Task
from looplm.errors import UserError

_CHALLENGES, _SOLUTIONS = "challenges", "solutions"


def read_tasks(paths: list[Path]) -> dict[str, Task]:
    """Read tasks by name; one that was there before is left out. Raises UserError for a file that holds none."""
    tasks: dict[str, Task] = {}
    for path in paths:
        found = dict(_read(path))
        if not found:
            raise UserError(
                f"{path} holds no task of ARC; give files like arc-agi_training_challenges.json, or a folder"
            )
        tasks = found | tasks
    return tasks


def _read(path: Path) -> Iterator[tuple[str, Task]]:
    if path.is_dir():
        for file in sorted(path.glob("*.json")):
            if _SOLUTIONS not in file.name:
                yield from _read(file)
        return
    tasks = _load(path)
    if {"train", "test"} <= tasks.keys():
        yield path.stem, _task(path, path.stem, tasks, None)
        return
    beside = path.with_name(path.name.replace(_CHALLENGES, _SOLUTIONS))
    answers = _load(beside) if beside != path and beside.is_file() else {}
    for name, task in tasks.items():
        yield name, _task(path, name, task, answers.get(name))


def _load(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; give files or folders of ARC tasks") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); fetch it again") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no task of ARC, but {type(value).__name__}; give the files of the tasks")
    return value


def _task(path: Path, name: str, task: Any, answers: Any) -> Task:
    try:
        demonstrations = [(_grid(pair["input"]), _grid(pair["output"])) for pair in task["train"]]
        told = [pair.get("output") for pair in task["test"]] if answers is None else answers
        questions: list[Pair] = [
            (_grid(pair["input"]), None if answer is None else _grid(answer))
            for pair, answer in zip(task["test"], told, strict=True)
        ]
        if not demonstrations or not questions:
            raise ValueError("it has no demonstration or no question")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"task {name} of {path} is none of ARC ({error}); fetch the file again") from None
    return Task(list(demonstrations), questions)


def _grid(rows: Any) -> np.ndarray:
    grid = np.array(rows)
    if grid.ndim != 2 or not 1 <= min(grid.shape) <= max(grid.shape) <= CANVAS:
        raise ValueError(f"a grid of shape {grid.shape}, where up to {CANVAS}x{CANVAS} are allowed")
    if not np.issubdtype(grid.dtype, np.integer) or grid.min() < 0 or grid.max() >= COLOURS:
        raise ValueError(f"a colour that is none of 0..{COLOURS - 1}")
    return grid.astype(np.uint8)
