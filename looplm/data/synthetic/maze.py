"""Mazes in which one path leads from S to G, asked for its cells (after Maze-Unique of EqR).

Rooms lie on the odd rows and columns; a walk that turns back only where it is stuck carves ways between them, so there
are no loops and every path is the only one. S is a random open cell, G one whose distance is in the wanted range.
"""

import numpy as np

from looplm.config import schema
from looplm.data.synthetic.draw import draw
from looplm.data.synthetic.grid import grid_length, lay_out
from looplm.data.synthetic.task import Examples
from looplm.errors import UserError

WALL, OPEN, START, GOAL, PATH, SEPARATOR = range(6)
_TRIES = 200
"""Mazes that are carved for an example before it is given up."""


class Maze:
    """The task of one size."""

    vocab_size = 6

    def __init__(self, config: schema.Maze) -> None:
        """Raises UserError for paths that are longer than those of such mazes."""
        self.config, self.num_examples = config, config.num_examples
        self.length = grid_length(config.size**2, config.in_place)
        self.mean_length = float(self.length)
        self.make(0)

    def __repr__(self) -> str:
        return repr(self.config)

    def examples(self, index_N: np.ndarray) -> Examples:
        mazes_N2C = np.array([self.make(index) for index in np.asarray(index_N).tolist()]).reshape(len(index_N), 2, -1)
        maze_NC, solved_NC = mazes_N2C[:, 0], mazes_N2C[:, 1]
        return lay_out(maze_NC, solved_NC, maze_NC == OPEN, separator=SEPARATOR, in_place=self.config.in_place)

    def make(self, index: int) -> tuple[list[int], list[int]]:
        """The maze of an example, row by row, and the same with its path."""
        config = self.config
        for attempt in range(_TRIES):
            bits = draw(f"maze {config.seed} {config.size} {attempt}", np.array([index]), config.size**2)[0].tolist()
            maze = carve(config.size, bits)
            cells = [cell for cell, kind in enumerate(maze) if kind == OPEN]
            start = cells[bits[-1] % len(cells)]
            came_from, distance = explore(maze, config.size, start)
            goals = [cell for cell in cells if config.min_path <= distance[cell] <= config.max_path]
            if not goals:
                continue
            goal = goals[bits[-2] % len(goals)]
            maze[start], maze[goal] = START, GOAL
            solved = list(maze)
            cell = came_from[goal]
            while cell != start:
                solved[cell] = PATH
                cell = came_from[cell]
            return maze, solved
        raise UserError(
            f"no maze of size={config.size} with a path of min_path={config.min_path} to max_path={config.max_path} "
            f"steps among {_TRIES}; use shorter paths or larger mazes"
        )


def carve(size: int, bits: list[int]) -> list[int]:
    """Carve a maze without loops, row by row; the n-th choice is bits[n] modulo what there is to choose from."""
    edge = (size - 1) // 2 * 2 + 1
    maze = [WALL] * (size * size)
    rooms = [y * size + x for y in range(1, edge, 2) for x in range(1, edge, 2)]
    walk = [rooms[bits[0] % len(rooms)]]
    maze[walk[0]] = OPEN
    choices = iter(bits[1:])
    while walk:
        y, x = divmod(walk[-1], size)
        steps = [
            (dy, dx)
            for dy, dx in ((1, 0), (0, -1), (0, 1), (-1, 0))
            if 0 < y + 2 * dy < edge and 0 < x + 2 * dx < edge and maze[(y + 2 * dy) * size + x + 2 * dx] == WALL
        ]
        if not steps:
            walk.pop()
            continue
        dy, dx = steps[next(choices) % len(steps)]
        maze[(y + dy) * size + x + dx] = OPEN
        walk.append((y + 2 * dy) * size + x + 2 * dx)
        maze[walk[-1]] = OPEN
    return maze


def explore(maze: list[int], size: int, start: int) -> tuple[dict[int, int], list[int]]:
    """Go from `start` everywhere: the cell before every cell, and the steps to it (-1 for walls)."""
    came_from, distance, frontier = {start: start}, [-1] * len(maze), [start]
    distance[start] = 0
    while frontier:
        reached = []
        for cell in frontier:
            for other in (cell - size, cell - 1, cell + 1, cell + size):  # the edge is wall all around
                if maze[other] != WALL and distance[other] < 0:
                    distance[other], came_from[other] = distance[cell] + 1, cell
                    reached.append(other)
        frontier = reached
    return came_from, distance
