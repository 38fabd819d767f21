"""Folders of Sudokus: one solution each, rated by guesses, and no kind of grid in both parts.

A puzzle is a full grid without the clues that can go. Such puzzles are mostly easy; harder ones are bred: of one of the
hardest so far a clue or two are taken out and the rest is completed to another grid, of which the puzzle keeps as
little else as it can.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np

from looplm.data.grids.classes import grid_class, puzzle_class
from looplm.data.grids.solver import allowed_digits, solve
from looplm.data.index import scramble
from looplm.data.records.writer import PartWriter, new_folder, write_identifiers
from looplm.data.synthetic.draw import draw
from looplm.data.synthetic.sudoku import BLOCKS, exchanged
from looplm.errors import UserError

RATINGS_FILE = "all__ratings.npy"
"""Guesses of every group's puzzle, int32: beside the records, whose format has no place for them."""
_ROUNDS = 400
"""Batches of puzzles that are made for a part before it is given up."""
_PARTS = ("train", "test")
_HELD_OUT = np.uint64(4)
"""One kind of grid in so many is held out."""


@dataclass(frozen=True)
class Options:
    size: int = 9
    train: int = 1000
    test: int = 1000
    augment: int = 1000
    clues: int | None = None
    """Clues that are left; None: none that could go."""
    min_guesses: int = 0
    max_guesses: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Puzzles:
    puzzles_NC: np.ndarray
    """Digits from 1; 0 is an empty cell."""
    grids_NC: np.ndarray
    guesses_N: np.ndarray

    def __len__(self) -> int:
        return len(self.puzzles_NC)

    def __getitem__(self, which: np.ndarray | slice) -> Self:
        return replace(
            self, puzzles_NC=self.puzzles_NC[which], grids_NC=self.grids_NC[which], guesses_N=self.guesses_N[which]
        )

    def with_new(self, other: "Puzzles") -> Self:
        """Append those of `other` that are not here yet."""
        puzzles_NC = np.concatenate([self.puzzles_NC, other.puzzles_NC])
        first = np.sort(np.unique(puzzles_NC, axis=0, return_index=True)[1])
        grids_NC, guesses_N = (
            np.concatenate(pair) for pair in ((self.grids_NC, other.grids_NC), (self.guesses_N, other.guesses_N))
        )
        return replace(self, puzzles_NC=puzzles_NC, grids_NC=grids_NC, guesses_N=guesses_N)[first]


def make_sudoku(out: Path, options: Options, report: Callable[[str], None] = lambda line: None) -> None:
    """Make a folder of records. Raises UserError for options that give too few puzzles, and when `out` is there."""
    size = options.size
    if size not in BLOCKS:
        raise UserError(f"--size {size} is none of {', '.join(map(str, BLOCKS))}")
    if options.max_guesses is not None and options.max_guesses < options.min_guesses:
        raise UserError(f"--max-guesses {options.max_guesses} is below --min-guesses {options.min_guesses}; swap them")
    with new_folder(out) as folder:
        for part in _PARTS:
            found = make_puzzles(options, part, report)
            with PartWriter(folder / part, size * size) as writer:
                for puzzles_NC, grids_NC in augmented(found, options, options.augment if part == "train" else 0):
                    writer.add(puzzles_NC + 1, grids_NC + 1)
                writer.finish(vocab_size=size + 2)
            np.save(folder / part / RATINGS_FILE, found.guesses_N.astype("<i4"))
            clues, guesses = (found.puzzles_NC > 0).sum(axis=1).mean(), found.guesses_N
            report(
                f"{part}: {len(found)} puzzles, {writer.num_examples} examples; {clues:.1f} clues on average, "
                f"{np.median(guesses):.0f} guesses in the middle, {guesses.max()} at most"
            )
        write_identifiers(folder)


def augmented(found: Puzzles, options: Options, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield every puzzle and its grid, (1 + count, cells) each: as it is, then with everything exchanged."""
    size = options.size
    for number, pair_2C in enumerate(np.stack([found.puzzles_NC, found.grids_NC], axis=1)):
        index = np.arange(number * count, number * count + count)
        bits = draw(f"grids of sudoku {options.seed} exchanged", index, 4 * size + 1)
        pairs = np.broadcast_to(pair_2C.reshape(2, 1, size, size), (2, count, size, size))
        others = exchanged(pairs, bits).reshape(2, count, size * size)
        yield tuple(np.concatenate([pair_2C[:, None], others], axis=1))


def make_puzzles(options: Options, part: str, report: Callable[[str], None] = lambda line: None) -> Puzzles:
    """Make the puzzles of a part, all different. Raises UserError where there are too few."""
    wanted = getattr(options, part)
    rng = np.random.default_rng([options.seed, _PARTS.index(part), options.size])
    most = np.inf if options.max_guesses is None else options.max_guesses
    batch = min(512, 4 * wanted)
    pool = _made(options, part, rng, _full(options.size, batch, rng))
    for number in range(_ROUNDS):
        pool = pool[pool.guesses_N <= most]
        good = pool.guesses_N >= options.min_guesses
        if good.sum() >= wanted:
            return pool[np.sort(rng.permutation(np.flatnonzero(good))[:wanted])]
        if not len(pool) or good.mean() > 0.1 or options.clues is not None:
            new = _made(options, part, rng, _full(options.size, batch, rng))
        else:
            pool = pool[np.argsort(-pool.guesses_N, kind="stable")[: max(wanted, batch)]]
            new = _bred(options, part, rng, pool, batch)
        pool = pool.with_new(new)
        if number % 10 == 9:
            report(f"{part}: {good.sum()} of {wanted} puzzles after {number + 1} rounds")
    wish = f"--min-guesses {options.min_guesses}" + ("" if options.max_guesses is None else f" --max-guesses {most}")
    clues = "" if options.clues is None else f" --clues {options.clues}"
    raise UserError(
        f"{good.sum()} of {wanted} puzzles for {part} with --size {options.size}{clues} {wish} after {_ROUNDS} rounds; "
        f"ask for fewer with --{part}, or for other guesses or clues"
    )


def _full(size: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Random full grids, (count, cells)."""
    return solve(np.ones((count, size, size * size), bool), limit=1, rng=rng).grids_NC


def _made(
    options: Options, part: str, rng: np.random.Generator, grids_NC: np.ndarray, parents_NC: np.ndarray | None = None
) -> Puzzles:
    """Make puzzles of those full grids that belong to a part, taking the clues first that their parents had not."""
    order_NC = rng.random(grids_NC.shape) + (0 if parents_NC is None else parents_NC > 0)
    if options.size > 4:
        mine = _is_of(part, grid_class(grids_NC))
        grids_NC, order_NC = grids_NC[mine], order_NC[mine]
    puzzles_NC = thinned(grids_NC, np.argsort(order_NC, axis=1), options.clues)
    if options.size == 4:  # there are only two kinds of grids
        mine = _is_of(part, puzzle_class(puzzles_NC))
        puzzles_NC, grids_NC = puzzles_NC[mine], grids_NC[mine]
    return Puzzles(puzzles_NC, grids_NC, rate(puzzles_NC))


def _bred(options: Options, part: str, rng: np.random.Generator, pool: Puzzles, count: int) -> Puzzles:
    parents_NC = pool.puzzles_NC[rng.integers(len(pool), size=count)].copy()
    taken_NC = np.argsort(rng.random(parents_NC.shape) + (parents_NC == 0), axis=1)
    np.put_along_axis(parents_NC, taken_NC[:, :1], 0, axis=1)
    second = rng.random(count) < 0.5
    parents_NC[second, taken_NC[second, 1]] = 0
    return _made(options, part, rng, solve(allowed_digits(parents_NC), limit=1, rng=rng).grids_NC, parents_NC)


def _is_of(part: str, classes_N: np.ndarray) -> np.ndarray:
    """Whether a kind belongs to a part: the same in every folder, whatever its seed."""
    return (scramble(classes_N) % _HELD_OUT == 0) == (part == "test")


def thinned(grids_NC: np.ndarray, order_NC: np.ndarray, clues: int | None) -> np.ndarray:
    """Take clues out of full grids, cell by cell in an order, as long as one solution is left and more than `clues`."""
    puzzles_NC = grids_NC.copy()
    for cell_N in order_NC.T:
        left = np.flatnonzero((puzzles_NC > 0).sum(axis=1) > (clues or 0))
        if not left.size:
            break
        cell, row, without = cell_N[left], np.arange(left.size), puzzles_NC[left]
        digit = without[row, cell]
        without[row, cell] = 0
        allowed_NDC = allowed_digits(without)
        allowed_NDC[row, digit - 1, cell] = False  # is there a solution with another digit there?
        can_go = solve(allowed_NDC, limit=1).count_N == 0
        puzzles_NC[left[can_go], cell[can_go]] = 0
    return puzzles_NC


def rate(puzzles_NC: np.ndarray) -> np.ndarray:
    """Count the digits that are tried until nothing is left but the one solution. Raises where there are more."""
    solved = solve(allowed_digits(puzzles_NC), limit=2)
    assert (solved.count_N == 1).all()
    return solved.guesses_N
