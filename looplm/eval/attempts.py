"""Two attempts at every question of ARC, by votes over the augmentations of a task."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from looplm.data.grids.tasks import QUESTIONS_FILE
from looplm.data.grids.votes import attempts, share_solved
from looplm.data.records.format import IDENTIFIERS_FILE
from looplm.data.records.windows import RecordWindows
from looplm.data.window import Windows
from looplm.metrics.answers import Attempts

COUNT = 2
"""ARC's own."""


class Asked(NamedTuple):
    """Rows of questions with what is answered."""

    ids_B: np.ndarray
    tokens_BS: np.ndarray
    best_BS: np.ndarray
    gate_B: np.ndarray


def measure_attempts(windows: Windows, asked: Sequence[Asked]) -> Attempts | None:
    """Count the tasks of ARC that are solved; None where the data are no questions of ARC, or have no answers."""
    if not isinstance(windows, RecordWindows) or not asked:
        return None
    folder: Path = windows.location.parent
    files = folder / QUESTIONS_FILE, folder / IDENTIFIERS_FILE
    if not all(file.is_file() for file in files):
        return None
    tasks, names = (json.loads(file.read_text()) for file in files)
    if not tasks or not all("output" in pair for task in tasks.values() for pair in task["test"]):
        return None
    of_all = Asked(*(np.concatenate(leaves) for leaves in zip(*asked, strict=True)))
    answered = attempts(
        [names[number] for number in of_all.ids_B], of_all.tokens_BS, of_all.best_BS, of_all.gate_B, count=COUNT
    )
    return Attempts(count=COUNT, num_tasks=len(tasks), solved=share_solved(answered, tasks))
