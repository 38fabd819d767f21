"""What lm-evaluation-harness found at several depths: `eval/lm_eval-<step>-<tasks>-depth-<R>.json`, in its format."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from looplm.errors import UserError

FILE_NAME = re.compile(r"lm_eval-(\d+)-(?!ema-)(.+)-depth-(\d+)\.json")


class TaskNumber(NamedTuple):
    """One number of a task at one depth."""

    task: str
    metric: str
    """With the harness's filter of the texts after a comma, if there is one."""
    depth: int
    value: float
    error: float | None
    """Its standard error, where the harness gives one."""


def read_task_results(folder: Path) -> tuple[int, list[TaskNumber]]:
    """Return (the latest step, its numbers by task, metric and depth) of the weights themselves; (0, []) without any.

    Raises UserError for a file that does not hold results.
    """
    named = [(found, path) for path in folder.glob("lm_eval-*.json") if (found := FILE_NAME.fullmatch(path.name))]
    step = max((int(found[1]) for found, _ in named), default=0)
    numbers = [number for found, path in named if int(found[1]) == step for number in _numbers(path, int(found[3]))]
    return step, sorted(set(numbers), key=lambda one: one[:3])


def _numbers(path: Path, depth: int) -> Iterator[TaskNumber]:
    try:
        tasks = json.loads(path.read_bytes())["results"]
        for task, found in tasks.items():
            for key, value in found.items():
                name, _, kind = key.partition(",")
                if kind and not name.endswith("_stderr") and isinstance(value, int | float):
                    error = found.get(f"{name}_stderr,{kind}")
                    yield TaskNumber(
                        task,
                        name + (f",{kind}" if kind != "none" else ""),
                        depth,
                        float(value),
                        float(error) if isinstance(error, int | float) else None,
                    )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} holds no results of tasks ({error}); run `looplm eval --tasks` again") from error
