"""Tasks like those of ARC that are made up: one of twelve rules with settings and a palette of its own.

What a task asks for shows in its demonstrations only, so a model has to learn it under the task's id, and is asked
about grids that it has not seen.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from looplm.data.grids.augmentation import COLOURS, SYMMETRIES, turned, turned_back
from looplm.data.grids.tasks import Pair, Task
from looplm.errors import UserError

_TRIES = 1000


class Rule(NamedTuple):
    """What a task asks for."""

    name: str
    draw: Callable[[np.random.Generator, np.ndarray], np.ndarray]
    """Makes a grid from a palette."""
    answer: Callable[[np.ndarray], np.ndarray]


def make_tasks(count: int, *, demonstrations: int, questions: int, size: int, seed: int) -> dict[str, Task]:
    """Make tasks by name, the rules in turn. Raises UserError for more than there are."""
    tasks: dict[str, Task] = {}
    rng = np.random.default_rng([seed, size])
    for _ in range(_TRIES * count):
        if len(tasks) == count:
            return tasks
        palette = 1 + rng.permutation(COLOURS - 1)[:4]
        rule = RULES[len(tasks) % len(RULES)](rng, size, palette)
        name = f"{rule.name}-{''.join(map(str, np.sort(palette)))}"
        if name not in tasks:
            pairs = _pairs(rule, palette, demonstrations + questions, rng)
            tasks[name] = Task(pairs[:demonstrations], pairs[demonstrations:])
    raise UserError(f"--tasks {count} is more than there are; {len(tasks)} different ones were found")


def _pairs(rule: Rule, palette: np.ndarray, count: int, rng: np.random.Generator) -> list[Pair]:
    """Grids that are all different, each changed by the rule.

    Raises:
        UserError: there are fewer.
    """
    pairs: dict[bytes, Pair] = {}
    for _ in range(_TRIES * count):
        if len(pairs) == count:
            break
        grid = rule.draw(rng, palette)
        answer = rule.answer(grid)
        if not np.array_equal(grid, answer):
            pairs[grid.tobytes()] = grid, answer
    if len(pairs) < count:
        raise UserError(
            f"--demonstrations and --questions ask for {count} grids a task, and only {len(pairs)} different ones were "
            f"found for the rule {rule.name}; ask for fewer, or take a larger --size"
        )
    return list(pairs.values())


def _scattered(size: int, share: float = 0.3) -> Callable[[np.random.Generator, np.ndarray], np.ndarray]:
    """Grids with cells of the palette here and there."""

    def draw(rng: np.random.Generator, palette: np.ndarray) -> np.ndarray:
        return np.where(rng.random((size, size)) < share, rng.choice(palette, (size, size)), 0).astype(np.uint8)

    return draw


def _mirror(rng: np.random.Generator, size: int, palette: np.ndarray) -> Rule:
    kind = int(rng.integers(4, 8))
    return Rule(f"mirror{kind}", _scattered(size), lambda grid: turned(grid, SYMMETRIES[kind]))


def _rotate(rng: np.random.Generator, size: int, palette: np.ndarray) -> Rule:
    kind = int(rng.integers(1, 4))
    return Rule(f"rotate{kind}", _scattered(size), lambda grid: turned(grid, SYMMETRIES[kind]))


def _recolour(rng: np.random.Generator, size: int, palette: np.ndarray) -> Rule:
    colours = np.arange(COLOURS, dtype=np.uint8)
    colours[palette] = np.roll(palette, 1)
    return Rule(f"recolour{''.join(map(str, colours[np.sort(palette)]))}", _scattered(size), lambda grid: colours[grid])


def _gravity(rng: np.random.Generator, size: int, palette: np.ndarray) -> Rule:
    kind = int(rng.integers(4))

    def fall(grid: np.ndarray) -> np.ndarray:
        grid = turned(grid, SYMMETRIES[kind])
        order = np.argsort(grid > 0, axis=0, kind="stable")
        return turned_back(np.take_along_axis(grid, order, axis=0), SYMMETRIES[kind])

    return Rule(f"gravity{kind}", _scattered(size), fall)


def _translate(rng: np.random.Generator, size: int, palette: np.ndarray) -> Rule:
    down, right = divmod(int(rng.integers(1, 9)), 3)

    def move(grid: np.ndarray) -> np.ndarray:
        moved = np.zeros_like(grid)
        moved[down:, right:] = grid[: size - down, : size - right]
        return moved

    return Rule(f"translate{down}{right}", _scattered(size), move)


def _fill(rng: np.random.Generator, size: int, palette: np.ndarray) -> Rule:
    wall, colour = palette[:2]

    def draw(rng: np.random.Generator, palette: np.ndarray) -> np.ndarray:
        grid = np.zeros((size, size), np.uint8)
        for _ in range(2):
            height, width = rng.integers(3, size // 2 + 2, 2)
            y, x = rng.integers(size + 1 - np.array([height, width]))
            grid[y : y + height, [x, x + width - 1]] = grid[[y, y + height - 1], x : x + width] = wall
        return grid

    def fill(grid: np.ndarray) -> np.ndarray:
        outside = np.pad(np.zeros(grid.shape, bool), 1, constant_values=True)
        free = np.pad(grid == 0, 1, constant_values=True)
        for _ in range(grid.size):
            outside = free & _with_neighbours(outside)
        return np.where((grid == 0) & ~outside[1:-1, 1:-1], colour, grid).astype(np.uint8)

    return Rule(f"fill{wall}{colour}", draw, fill)


def _with_neighbours(cells: np.ndarray) -> np.ndarray:
    """Cells and those above, below and beside them."""
    grown = cells.copy()
    grown[1:] |= cells[:-1]
    grown[:-1] |= cells[1:]
    grown[:, 1:] |= cells[:, :-1]
    grown[:, :-1] |= cells[:, 1:]
    return grown


def _crop(rng: np.random.Generator, size: int, palette: np.ndarray) -> Rule:
    colour = palette[0]

    def draw(rng: np.random.Generator, palette: np.ndarray) -> np.ndarray:
        grid = np.where(rng.random((size, size)) < 0.2, rng.choice(palette[1:], (size, size)), 0).astype(np.uint8)
        height, width = rng.integers(2, size // 2 + 1, 2)
        y, x = rng.integers(size + 1 - np.array([height, width]))
        grid[y : y + height, x : x + width] = np.where(rng.random((height, width)) < 0.7, colour, 0)
        grid[y, x] = grid[y + height - 1, x + width - 1] = colour
        return grid

    def crop(grid: np.ndarray) -> np.ndarray:
        y, x = np.nonzero(grid == colour)
        return grid[y.min() : y.max() + 1, x.min() : x.max() + 1]

    return Rule(f"crop{colour}", draw, crop)


def _line(rng: np.random.Generator, size: int, palette: np.ndarray) -> Rule:
    """Between the two cells of one colour in a row, or in a column."""
    kind = (0, 6)[int(rng.integers(2))]

    def draw(rng: np.random.Generator, palette: np.ndarray) -> np.ndarray:
        grid = np.zeros((size, size), np.uint8)
        for row in rng.permutation(size)[: rng.integers(2, size // 2 + 1)]:
            grid[row, rng.permutation(size)[: rng.integers(1, 3)]] = rng.choice(palette)
        return turned_back(grid, SYMMETRIES[kind])

    def connect(grid: np.ndarray) -> np.ndarray:
        lined = turned(grid, SYMMETRIES[kind]).copy()
        for row in lined:
            columns = np.flatnonzero(row)
            if len(columns) == 2 and row[columns[0]] == row[columns[1]]:
                row[columns[0] : columns[1]] = row[columns[0]]
        return turned_back(lined, SYMMETRIES[kind])

    return Rule(f"line{kind}", draw, connect)


def _count(rng: np.random.Generator, size: int, palette: np.ndarray) -> Rule:
    """A bar as long as there are cells of a colour, one more than none."""
    colour = palette[0]

    def draw(rng: np.random.Generator, palette: np.ndarray) -> np.ndarray:
        grid = _scattered(size)(rng, palette[1:])
        cells = rng.permutation(size * size)[: rng.integers(1, size + 1)]
        grid.reshape(-1)[cells] = colour
        return grid

    return Rule(f"count{colour}", draw, lambda grid: np.full((1, (grid == colour).sum()), colour, np.uint8))


def _symmetrise(rng: np.random.Generator, size: int, palette: np.ndarray) -> Rule:
    kind = int(rng.integers(4, 6))

    def draw(rng: np.random.Generator, palette: np.ndarray) -> np.ndarray:
        grid = _scattered(size, 0.5)(rng, palette)
        if kind == 4:
            grid[:, size // 2 :] = 0
        else:
            grid[size // 2 :] = 0
        return grid

    return Rule(f"symmetrise{kind}", draw, lambda grid: np.maximum(grid, turned(grid, SYMMETRIES[kind])))


def _outline(rng: np.random.Generator, size: int, palette: np.ndarray) -> Rule:
    colour = palette[0]

    def draw(rng: np.random.Generator, palette: np.ndarray) -> np.ndarray:
        return _scattered(size, 0.06)(rng, palette[1:])

    def outline(grid: np.ndarray) -> np.ndarray:
        return np.where((grid == 0) & _with_neighbours(grid > 0), colour, grid).astype(np.uint8)

    return Rule(f"outline{colour}", draw, outline)


def _majority(rng: np.random.Generator, size: int, palette: np.ndarray) -> Rule:
    """All coloured cells take the colour that is the most frequent, or the least; of equals, the smallest number."""
    least = bool(rng.integers(2))

    def vote(grid: np.ndarray) -> np.ndarray:
        counts = np.bincount(grid[grid > 0], minlength=COLOURS)
        there = np.flatnonzero(counts)
        winner = there[(counts[there].argmin if least else counts[there].argmax)()] if there.size else 0
        return np.where(grid > 0, winner, 0).astype(np.uint8)

    return Rule("minority" if least else "majority", _scattered(size), vote)


RULES = (
    _mirror,
    _rotate,
    _recolour,
    _gravity,
    _fill,
    _translate,
    _crop,
    _line,
    _count,
    _symmetrise,
    _outline,
    _majority,
)
