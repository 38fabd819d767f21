"""Sudokus against solvers that share nothing with the one that makes them; no kind of grid is in both parts."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from looplm.config.schema import Records
from looplm.data.grids.classes import grid_class, puzzle_class
from looplm.data.grids.solver import allowed_digits, solve
from looplm.data.grids.sudoku import Options, make_puzzles, make_sudoku, rate, thinned
from looplm.data.records.windows import RecordWindows
from looplm.data.synthetic.sudoku import BLOCKS, solutions
from looplm.errors import UserError

HARD = "800000000003600000070090200050007000000045700000100030001000068008500010090000400"
"""Known for its difficulty (A. Inkala, 2012)."""


def is_valid(grid_C: np.ndarray) -> bool:
    """Whether every row, column and block holds every digit."""
    size = int(len(grid_C) ** 0.5)
    rows, columns = BLOCKS[size]
    grid = grid_C.reshape(size, size)
    blocks = [
        grid[y : y + rows, x : x + columns].reshape(-1) for y in range(0, size, rows) for x in range(0, size, columns)
    ]
    return all(sorted(line.tolist()) == list(range(1, size + 1)) for line in (*grid, *grid.T, *blocks))


def symmetric(grid: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another grid of the same kind: lines and digits exchanged one after the other, by hand."""
    size = len(grid)
    rows, columns = BLOCKS[size]

    def lines(each: int) -> list[int]:
        bands = rng.permutation(size // each).tolist()
        return [band * each + line for band in bands for line in rng.permutation(each).tolist()]

    grid = grid[lines(rows)][:, lines(columns)]
    if rows == columns and rng.random() < 0.5:
        grid = grid.T
    return np.concatenate([[0], 1 + rng.permutation(size)])[grid]


@pytest.mark.parametrize("size", [4, 6, 9])
def test_puzzles_have_one_solution_and_no_clue_can_go(size: int) -> None:
    count = 3 if size == 9 else 10
    found = make_puzzles(Options(size=size, train=count), "train")
    for puzzle, grid in zip(found.puzzles_NC.tolist(), found.grids_NC, strict=True):
        assert is_valid(grid)
        assert list(solutions(puzzle, size)) == [grid.tolist()]
        for cell in np.flatnonzero(puzzle).tolist():
            without = [*puzzle[:cell], 0, *puzzle[cell + 1 :]]
            assert len(list(itertools.islice(solutions(without, size), 2))) == 2
    assert len({tuple(puzzle) for puzzle in found.puzzles_NC.tolist()}) == count


def test_all_solutions_are_counted() -> None:
    assert solve(np.ones((1, 4, 16), bool), limit=10**6).count_N.tolist() == [288]
    rng = np.random.default_rng(0)
    grids = solve(np.ones((20, 6, 36), bool), limit=1, rng=rng).grids_NC
    puzzles = np.where(rng.random(grids.shape) < 0.35, grids, 0)
    counted = solve(allowed_digits(puzzles), limit=40).count_N.tolist()
    assert counted == [len(list(itertools.islice(solutions(puzzle, 6), 40))) for puzzle in puzzles.tolist()]
    assert len(set(counted)) > 3
    contradiction = np.array([[1, 1, *[0] * 14], [0] * 16])
    assert solve(allowed_digits(contradiction), limit=1).count_N.tolist() == [0, 1]


def tried(allowed: np.ndarray, size: int) -> int:
    """The digits that are tried, one puzzle at a time and by sets: singles first, then the cell with the fewest."""
    rows, columns = BLOCKS[size]
    y, x = np.divmod(np.arange(size * size), size)
    units = [
        np.flatnonzero(number == n) for number in (y, x, y // rows * size + x // columns) for n in np.unique(number)
    ]
    cells = [{digit for digit in range(size) if allowed[digit, cell]} for cell in range(size * size)]
    while True:
        before = [set(cell) for cell in cells]
        if any(len(set.union(*(cells[c] for c in unit))) < size for unit in units) or not all(cells):
            return 0
        singles = {c: next(iter(cell)) for c, cell in enumerate(cells) if len(cell) == 1}
        for unit in units:
            for digit in range(size):
                places = [c for c in unit if digit in before[c]]
                if len(places) == 1 and singles.setdefault(places[0], digit) != digit:
                    return 0
        for cell, digit in singles.items():
            cells[cell] = {digit}
            for other in {c for unit in units if cell in unit for c in unit.tolist()} - {cell}:
                cells[other] = cells[other] - {digit}
        if cells == before:
            break
    open_cells = [c for c in range(size * size) if len(cells[c]) > 1]
    if not open_cells:
        return 0
    guessed, total = min(open_cells, key=lambda c: (len(cells[c]), c)), 0
    for digit in cells[guessed]:
        guess = np.array([[d in cell for cell in cells] for d in range(size)])
        guess[:, guessed] = np.arange(size) == digit
        total += 1 + tried(guess, size)
    return total


def test_the_rating_is_the_number_of_digits_that_are_tried() -> None:
    puzzles = make_puzzles(Options(train=6, seed=1), "train").puzzles_NC
    assert rate(puzzles).tolist() == [tried(allowed, 9) for allowed in allowed_digits(puzzles)]
    assert rate(puzzles).max() > 3
    assert rate(np.array([list(map(int, HARD))])) == 320  # which `tried` needs seconds for


# One 6x6 in twenty is as hard by chance, one 9x9 in eight.
@pytest.mark.parametrize(
    "options",
    [Options(size=6, train=3, min_guesses=2), pytest.param(Options(train=50, min_guesses=12), marks=pytest.mark.slow)],
)
def test_puzzles_are_as_hard_as_asked_for(options: Options) -> None:
    hard = make_puzzles(replace(options, max_guesses=60), "train")
    assert options.min_guesses <= hard.guesses_N.min() <= hard.guesses_N.max() <= 60
    for puzzle, grid in zip(hard.puzzles_NC.tolist(), hard.grids_NC.tolist(), strict=True):
        assert list(solutions(puzzle, options.size)) == [grid]


def test_puzzles_have_as_many_clues_as_asked_for() -> None:
    easy = make_puzzles(Options(train=4, clues=36), "train")
    assert (easy.puzzles_NC > 0).sum(axis=1).tolist() == [36] * 4


def test_what_is_not_found_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("looplm.data.grids.sudoku._ROUNDS", 3)
    with pytest.raises(
        UserError, match=r"0 of 5 puzzles for train with --size 4 --min-guesses 50 after 3 rounds; ask for"
    ):
        make_puzzles(Options(size=4, train=5, min_guesses=50), "train")


@pytest.mark.parametrize("size", [4, 6, 9])
def test_no_kind_of_grid_is_in_both_parts(size: int) -> None:
    options = Options(size=size, train=4 if size == 9 else 30, test=4 if size == 9 else 8)
    train, test = (make_puzzles(options, part) for part in ("train", "test"))
    of = (lambda found: puzzle_class(found.puzzles_NC)) if size == 4 else (lambda found: grid_class(found.grids_NC))
    kinds = [set(of(found).tolist()) for found in (train, test)]
    assert not kinds[0] & kinds[1]
    assert min(map(len, kinds)) > 1
    # Nor in another folder.
    other = make_puzzles(Options(size=size, test=2, seed=5), "test")
    assert not kinds[0] & set(of(other).tolist())


@pytest.mark.parametrize("size", [4, 6, 9])
def test_kinds_do_not_change_by_symmetry(size: int) -> None:
    rng = np.random.default_rng(1)
    grids = solve(np.ones((60, size, size * size), bool), limit=1, rng=rng).grids_NC
    others = np.array([symmetric(grid.reshape(size, size), rng).reshape(-1) for grid in grids])
    assert all(map(is_valid, others))
    assert (others != grids).any(axis=1).all()
    assert grid_class(others).tolist() == grid_class(grids).tolist()
    assert len(set(grid_class(grids).tolist())) >= {4: 2, 6: 20, 9: 60}[size]
    if size == 4:
        puzzles = thinned(grids, np.argsort(rng.random(grids.shape), axis=1), None)
        others = np.array([symmetric(puzzle.reshape(4, 4), rng).reshape(-1) for puzzle in puzzles])
        assert puzzle_class(others).tolist() == puzzle_class(puzzles).tolist()
        assert 10 < len(set(puzzle_class(puzzles).tolist())) <= 36  # so many there are


@pytest.mark.parametrize("size", [4, 6, 9])
def test_a_folder_holds_every_puzzle_and_its_augmentations(size: int, tmp_path: Path) -> None:
    options = Options(size=size, train=4, test=2, augment=20, seed=3)
    said: list[str] = []
    make_sudoku(tmp_path / "out", options, said.append)
    assert [line.partition(" puzzles")[0] for line in said] == ["train: 4", "test: 2"]
    for part, groups, each in (("train", 4, 21), ("test", 2, 1)):
        windows = RecordWindows(Records(folder=str(tmp_path / "out"), part=part), size * size)
        assert (len(windows), windows.vocab_size, windows.num_ids) == (groups * each, size + 2, 1)
        batch = windows.read(np.arange(len(windows)))
        puzzles, grids = batch["tokens"] - 1, batch["labels"] - 1
        assert all(map(is_valid, grids))
        assert ((puzzles == 0) | (puzzles == grids)).all()
        assert len({tuple(puzzle) for puzzle in puzzles.tolist()}) > 0.9 * len(puzzles)
        classes = grid_class(grids).reshape(groups, each)
        assert (classes == classes[:, :1]).all()
        for puzzle in puzzles[:: max(1, len(puzzles) // 8)].tolist():
            assert len(list(itertools.islice(solutions(puzzle, size), 2))) == 1
        found = make_puzzles(options, part)
        assert puzzles[::each].tolist() == found.puzzles_NC.tolist()
        assert np.load(tmp_path / "out" / part / "all__ratings.npy").tolist() == found.guesses_N.tolist()
    assert json.loads((tmp_path / "out" / "identifiers.json").read_text()) == ["<blank>"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(size=5), "--size 5 is none of 4, 6, 9"),
        (Options(min_guesses=3, max_guesses=2), "--max-guesses 2 is below --min-guesses 3; swap them"),
    ],
)
def test_what_cannot_be_made_is_refused(options: Options, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        make_sudoku(tmp_path / "out", options)
    assert not any(tmp_path.iterdir())
