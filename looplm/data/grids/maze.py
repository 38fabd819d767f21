"""Folders of mazes with one path from S to G, as Maze-Unique of EqR: those of the task, cell for cell."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from looplm.config import schema
from looplm.data.grids.augmentation import SYMMETRIES, turned
from looplm.data.records.writer import PartWriter, new_folder, write_identifiers
from looplm.data.synthetic.maze import PATH, Maze
from looplm.errors import UserError


@dataclass(frozen=True)
class Options:
    size: int = 30
    train: int = 1000
    test: int = 1000
    augment: int = 0
    """Of the seven ways to turn or mirror a maze, so many are added."""
    min_path: int = 100
    max_path: int = 140
    seed: int = 0


def make_mazes(out: Path, options: Options) -> None:
    """Make a folder of records; tokens are padding, then `# SGo`. Raises UserError for sizes without such mazes, and
    when `out` is there."""
    if not 0 <= options.augment < len(SYMMETRIES):
        raise UserError(f"--augment {options.augment} is above the 7 other ways to look at a maze; use 0 to 7")
    if options.min_path > options.max_path:
        raise UserError(f"--min-path {options.min_path} is above --max-path {options.max_path}; swap them")
    task = Maze(
        schema.Maze(
            size=options.size, min_path=options.min_path, max_path=options.max_path, in_place=True, seed=options.seed
        )
    )
    mazes = _different(task, options.train + options.test)
    with new_folder(out) as folder:
        for part in ("train", "test"):
            kinds = SYMMETRIES[: 1 + options.augment] if part == "train" else SYMMETRIES[:1]
            with PartWriter(folder / part, options.size**2) as writer:
                for _ in range(getattr(options, part)):
                    pair_2YX = next(mazes)
                    looks_K2C = np.stack([turned(pair_2YX, kind).reshape(2, -1) for kind in kinds])
                    writer.add(looks_K2C[:, 0] + 1, looks_K2C[:, 1] + 1)
                writer.finish(vocab_size=PATH + 2)
        write_identifiers(folder)


def _different(task: Maze, count: int) -> Iterator[np.ndarray]:
    """Yield mazes and their solutions, (2, size, size); none is another, turned or mirrored."""
    seen: set[bytes] = set()
    for index in range(10 * count + 100):
        pair_2YX = np.array(task.make(index), np.uint8).reshape(2, task.config.size, task.config.size)
        looks = [turned(pair_2YX[0], kind).tobytes() for kind in SYMMETRIES]
        if seen.isdisjoint(looks):
            seen.add(looks[0])
            yield pair_2YX
    raise UserError(
        f"{len(seen)} of {count} different mazes of --size {task.config.size}; ask for fewer or larger ones"
    )
