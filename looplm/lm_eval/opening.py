"""From what a command line says of a model to one that answers."""

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import looplm
from looplm.api import DType, LoadedLM
from looplm.errors import UserError
from looplm.lm_eval.answers import Answers

UNKNOWN_LENGTH = 2048
"""What the harness takes where a config does not say how long texts may be."""
LENGTHS = ("max_position_embeddings", "block_size")
"""What official configs call it."""


def parse_loops(loops: int | str | None, trained: int) -> tuple[int, ...]:
    """Read numbers of loops, `4` or `1+2+4+8`; ascending. None: the trained number.

    Raises UserError for anything else.
    """
    if loops is None:
        return (trained,)
    try:
        depths = sorted({int(part) for part in str(loops).split("+")})
    except ValueError:
        depths = [0]
    if depths[0] < 1:
        raise UserError(f"loops={loops!r} holds something else than loop counts of at least 1; use e.g. 4 or 1+2+4+8")
    return tuple(depths)


@lru_cache(maxsize=1)
def opened(
    workdir: str,
    step: int | None = None,
    ema: bool = False,
    dtype: DType | None = None,
    max_length: int | None = None,
    batch_size: int | None = None,
    allow_keys: tuple[str, ...] = (),
    exit: str | None = None,
    kv: str | None = None,
    draft: str | int | None = None,
) -> Answers:
    """Load a run or an official model, and lay it out over the devices. The last one stays, so that several depths of
    it are asked without loading it again.

    Args:
        max_length: tokens that it may read at once; None: as many as in training, or as its official config says.
        batch_size, exit, kv, draft: see `Answers`.

    Other arguments and what is raised as of `looplm.load` and `Answers`.
    """
    for name, value in (("max_length", max_length), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise UserError(f"{name}={value} must be at least 1")
    model = looplm.load(workdir, step=step, ema=ema, dtype=dtype, allow_keys=allow_keys)
    length = max_length or longest_text(Path(workdir), model)
    options: dict[str, Any] = {"batch_size": batch_size, "exit": exit, "kv": kv, "draft": draft}
    return Answers(model, [model.loop.num_loops], max_length=length, **options)


def longest_text(folder: Path, model: LoadedLM) -> int:
    """Return how many tokens a model was trained to read at once, as far as its folder says."""
    if model.run is not None:
        return model.run.data.sequence_length
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return next((config[name] for name in LENGTHS if isinstance(config.get(name), int)), UNKNOWN_LENGTH)


def batch_size_of(given: int | str | Sequence[int] | None) -> int | None:
    """Read the harness's `--batch_size`: a number, or `auto`, which is None. Raises UserError for anything else."""
    if given is None or str(given).startswith("auto"):
        return None
    if not str(given).isdecimal():
        raise UserError(f"batch_size={given!r} is neither a number nor auto")
    return int(str(given))
