"""Folders of mazes: one path each, by a search of its own; no maze twice, however turned."""

from pathlib import Path

import numpy as np
import pytest

from looplm.config.schema import Records
from looplm.data.grids.maze import Options, make_mazes
from looplm.data.records.windows import RecordWindows
from looplm.errors import UserError

WALL, OPEN, START, GOAL, PATH = range(1, 6)


def the_path(maze: np.ndarray) -> list[tuple[int, int]]:
    """The one way from S to G, or an error: every other open cell that has one way on is walled up in turn."""
    left = maze != WALL
    ends = {tuple(np.argwhere(maze == kind)[0].tolist()) for kind in (START, GOAL)}

    def neighbours(cell: tuple[int, int]) -> list[tuple[int, int]]:
        y, x = cell
        return [to for to in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)) if left[to]]

    while dead := [c for c in map(tuple, np.argwhere(left).tolist()) if c not in ends and len(neighbours(c)) < 2]:
        for cell in dead:
            left[cell] = False
    assert all(len(neighbours(cell)) == (1 if cell in ends else 2) for cell in map(tuple, np.argwhere(left).tolist()))
    return list(map(tuple, np.argwhere(left).tolist()))


def test_mazes_have_one_path(tmp_path: Path) -> None:
    options = Options(size=12, train=6, test=4, augment=7, min_path=15, max_path=30, seed=2)
    make_mazes(tmp_path / "out", options)
    seen = set()
    for part, count in (("train", 48), ("test", 4)):
        windows = RecordWindows(Records(folder=str(tmp_path / "out"), part=part), 144)
        assert (len(windows), windows.vocab_size) == (count, 6)
        batch = windows.read(np.arange(count))
        for maze, solved in zip(batch["tokens"].reshape(-1, 12, 12), batch["labels"].reshape(-1, 12, 12), strict=True):
            path = the_path(maze)
            assert 15 <= len(path) - 1 <= 30
            want = maze.copy()
            for cell in path:
                want[cell] = PATH if maze[cell] == OPEN else maze[cell]
            np.testing.assert_array_equal(solved, want)
            seen.add(maze.tobytes())
    assert len(seen) == 52
    groups = np.load(tmp_path / "out" / "train" / "all__group_indices.npy")
    assert groups.tolist() == list(range(0, 49, 8))


def test_sizes_without_mazes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no maze of size=5 with a path of min_path=30"):
        make_mazes(tmp_path / "out", Options(size=5, min_path=30))
    with pytest.raises(UserError, match="different mazes of --size 5; ask for fewer or larger ones"):
        make_mazes(tmp_path / "out", Options(size=5, train=300, min_path=3, max_path=5))
    with pytest.raises(UserError, match="--min-path 9 is above --max-path 5; swap them"):
        make_mazes(tmp_path / "out", Options(size=9, min_path=9, max_path=5))
    assert not any(tmp_path.iterdir())
