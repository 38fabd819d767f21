"""Made-up tasks: every rule against a few lines of its own, and folders of them."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from looplm.config.schema import Records
from looplm.data.grids.rules import RULES, make_tasks
from looplm.data.grids.tasks import write_tasks
from looplm.data.records.windows import RecordWindows
from looplm.errors import UserError

TURNED = [
    np.asarray, np.rot90, lambda g: np.rot90(g, 2), lambda g: np.rot90(g, 3), np.fliplr, np.flipud, np.transpose,
    lambda g: np.rot90(g, 2).T,
]  # fmt: skip
BACK = [TURNED[n] for n in (0, 3, 2, 1, 4, 5, 6, 7)]


def fall(grid: np.ndarray) -> np.ndarray:
    columns = [[cell for cell in column if cell] for column in grid.T.tolist()]
    return np.array([[0] * (len(grid) - len(column)) + column for column in columns]).T


def fill(grid: np.ndarray, colour: int) -> np.ndarray:
    outside = {(y, x) for y, x in np.argwhere(grid == 0).tolist() if {y, x} & {0, len(grid) - 1}}
    todo = list(outside)
    while todo:
        y, x = todo.pop()
        for to in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
            if max(to) < len(grid) and min(to) >= 0 and not grid[to] and to not in outside:
                outside.add(to)
                todo.append(to)
    filled = grid.copy()
    for y, x in np.argwhere(grid == 0).tolist():
        if (y, x) not in outside:
            filled[y, x] = colour
    return filled


def shift(grid: np.ndarray, down: int, right: int) -> np.ndarray:
    return np.pad(grid, ((down, 0), (right, 0)))[: len(grid), : len(grid)]


def crop(grid: np.ndarray, colour: int) -> np.ndarray:
    while not (grid[0] == colour).any():
        grid = grid[1:]
    for _ in range(3):
        grid = np.rot90(grid)
        while not (grid[0] == colour).any():
            grid = grid[1:]
    return np.rot90(grid)


def line(grid: np.ndarray, kind: int) -> np.ndarray:
    rows = []
    for row in (grid.T if kind else grid).tolist():
        ends = [x for x, cell in enumerate(row) if cell]
        joined = len(ends) == 2 and row[ends[0]] == row[ends[1]]
        rows.append([row[ends[0]] if joined and ends[0] <= x <= ends[1] else cell for x, cell in enumerate(row)])
    return np.array(rows).T if kind else np.array(rows)


def outline(grid: np.ndarray, colour: int) -> np.ndarray:
    wide = np.pad(grid, 1)
    near = wide[2:, 1:-1] + wide[:-2, 1:-1].astype(int) + wide[1:-1, 2:] + wide[1:-1, :-2]
    return np.where((grid == 0) & (near > 0), colour, grid)


def majority(grid: np.ndarray, sign: int) -> np.ndarray:
    counts = Counter(grid[grid > 0].tolist())
    best = min(counts, key=lambda colour: (-sign * counts[colour], colour))
    return np.where(grid > 0, best, 0)


WANTED: dict[str, Callable[[np.ndarray, list[int]], np.ndarray]] = {
    "mirror": lambda g, n: TURNED[n[0]](g),
    "rotate": lambda g, n: TURNED[n[0]](g),
    "gravity": lambda g, n: BACK[n[0]](fall(TURNED[n[0]](g))),
    "fill": lambda g, n: fill(g, n[1]),
    "translate": lambda g, n: shift(g, *n),
    "crop": lambda g, n: crop(g, n[0]),
    "line": lambda g, n: line(g, n[0]),
    "count": lambda g, n: np.array([[n[0]] * (g == n[0]).sum()]),
    "symmetrise": lambda g, n: np.where(g > 0, g, TURNED[n[0]](g)),
    "outline": lambda g, n: outline(g, n[0]),
    "majority": lambda g, n: majority(g, 1),
    "minority": lambda g, n: majority(g, -1),
}


def test_tasks_follow_their_rules() -> None:
    tasks = make_tasks(120, demonstrations=4, questions=2, size=8, seed=0)
    assert len(tasks) == 120
    seen = Counter()
    for name, task in tasks.items():
        rule, palette = name.split("-")
        kind, settings = rule.rstrip("0123456789"), list(map(int, rule.lstrip("abcdefghijklmnopqrstuvwxyz")))
        assert (len(task.demonstrations), len(task.questions)) == (4, 2)
        pairs = task.demonstrations + task.questions
        assert len({grid.tobytes() for grid, _ in pairs}) == 6
        for grid, answer in pairs:
            assert grid.shape == (8, 8)
            assert set(np.unique(grid).tolist()) <= {0, *map(int, palette)}
            if kind == "recolour":
                colours = dict(zip(sorted(map(int, palette)), settings, strict=True)) | {0: 0}
                assert answer.tolist() == [[colours[cell] for cell in row] for row in grid.tolist()]
            else:
                assert answer.tolist() == WANTED[kind](grid, settings).tolist(), name
            assert grid.tolist() != answer.tolist()
        seen[kind] += 1
    assert set(seen) == {*WANTED, "recolour"}
    assert len(RULES) == 12
    assert {
        name: task.to_json() for name, task in make_tasks(5, demonstrations=4, questions=2, size=8, seed=0).items()
    } == {name: tasks[name].to_json() for name in list(tasks)[:5]}


def test_a_folder_asks_under_the_ids_of_the_demonstrations(tmp_path: Path) -> None:
    tasks = make_tasks(24, demonstrations=3, questions=1, size=8, seed=1)
    write_tasks(tmp_path / "out", {}, tasks, augment=2, seed=1, canvas=8)
    names = json.loads((tmp_path / "out" / "identifiers.json").read_text())
    train, test = (RecordWindows(Records(folder=str(tmp_path / "out"), part=part), 64) for part in ("train", "test"))
    assert (len(train), len(test), train.num_ids) == (24 * 3 * 3, 24 * 3, len(names))
    learnt, asked = train.read(np.arange(len(train))), test.read(np.arange(len(test)))
    assert learnt["ids"].tolist() == np.repeat(np.arange(1, 73), 3).tolist()
    assert asked["ids"].tolist() == list(range(1, 73))
    assert names[1::3] == list(tasks)


def test_more_tasks_than_there_are_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("looplm.data.grids.rules.RULES", RULES[-1:])
    monkeypatch.setattr("looplm.data.grids.rules._TRIES", 20)
    with pytest.raises(UserError, match="--tasks 253 is more than there are; 252 different ones were found"):
        make_tasks(253, demonstrations=1, questions=1, size=8, seed=0)


def test_more_grids_than_a_rule_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("looplm.data.grids.rules._TRIES", 20)
    with pytest.raises(UserError, match=r"--questions ask for 40 grids a task, and only \d+ different ones"):
        make_tasks(8, demonstrations=39, questions=1, size=4, seed=0)
