"""Two attempts at every question from the predictions for all augmentations of a task: the most frequent answers.

Every prediction is turned back and recoloured as its puzzle was not; equal answers are counted, and equal counts are
told apart by the mean of q, what the model thinks of its answer (the scoring of HRM and TRM on ARC).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from looplm.data.grids.augmentation import Augmentation
from looplm.data.grids.encoding import decode

Answered = list[tuple[np.ndarray, list[np.ndarray]]]
"""Every question of a task, as it stands in its file, and the attempts at it, best first."""


def vote(candidates: Iterable[tuple[np.ndarray, float]], count: int = 2) -> list[np.ndarray]:
    """Rank grids, each with its q, by how often they occur, then by the mean of q; the first `count`, all different."""
    found: dict[tuple[tuple[int, ...], bytes], tuple[np.ndarray, list[float]]] = {}
    for grid, q in candidates:
        found.setdefault((grid.shape, grid.tobytes()), (grid, []))[1].append(float(q))
    ranked = sorted(found.values(), key=lambda each: (-len(each[1]), -float(np.mean(each[1]))))
    return [grid for grid, _ in ranked[:count]]


def attempts(
    names: Sequence[str], inputs_NS: np.ndarray, predictions_NS: np.ndarray, q_N: np.ndarray, *, count: int = 2
) -> dict[str, Answered]:
    """Return the attempts at every question of every task.

    Args:
        names: of the puzzle that each row belongs to, as in identifiers.json.
        inputs_NS: tokens of the questions, in the corner of the canvas.
        predictions_NS: the likeliest token of every cell.
        q_N: what the model thinks of every prediction; larger is better.
    """
    asked: dict[str, dict[tuple[tuple[int, ...], bytes], tuple[np.ndarray, list[tuple[np.ndarray, float]]]]] = {}
    for name, tokens_S, predicted_S, q in zip(names, inputs_NS, predictions_NS, q_N.tolist(), strict=True):
        task, done = Augmentation.parse(name)
        question = done.undo(decode(tokens_S))
        place = asked.setdefault(task, {}).setdefault((question.shape, question.tobytes()), (question, []))
        place[1].append((done.undo(decode(predicted_S)), q))
    return {
        task: [(question, vote(candidates, count)) for question, candidates in questions.values()]
        for task, questions in asked.items()
    }


def share_solved(answered: Mapping[str, Answered], tasks: Mapping[str, Mapping[str, Any]]) -> float:
    """The share of tasks that are solved, those with several questions in part: one attempt has to be right.

    tasks: what `test_puzzles.json` holds. A question without an attempt is not solved.
    """
    shares = []
    for name, task in tasks.items():
        attempts_of = {question.tobytes() + bytes(question.shape): tried for question, tried in answered.get(name, [])}
        right = 0
        for pair in task["test"]:
            question, answer = (np.array(pair[key], np.uint8) for key in ("input", "output"))
            tried = attempts_of.get(question.tobytes() + bytes(question.shape), [])
            right += any(np.array_equal(answer, grid) for grid in tried)
        shares.append(right / len(task["test"]))
    return float(np.mean(shares))
