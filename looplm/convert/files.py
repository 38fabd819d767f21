"""What goes along with the weights, and folders that are there as a whole or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from looplm.checkpoint.lineage import GENERATION, TOKENIZER, TOKENIZER_FILES
from looplm.errors import UserError

SENTENCEPIECE = "tokenizer.model"
"""Of older folders, beside a tokenizer.json which says the same; a run has one tokenizer."""
MAX_BYTES = 1 << 28
"""No file of a tokenizer is larger."""


def copy_tokenizer(source: Path, target: Path) -> list[str]:
    """Copies the contents of what is there, and returns the names."""
    names = [name for name in (*TOKENIZER_FILES, GENERATION) if (source / name).is_file()]
    if TOKENIZER not in names and (source / SENTENCEPIECE).is_file():
        names.append(SENTENCEPIECE)
    for name in names:
        if (size := (source / name).stat().st_size) > MAX_BYTES:
            raise UserError(f"{source / name} has {size} bytes, and no file of a tokenizer has; download it again")
        shutil.copyfile(source / name, target / name)
    return names


def check_new(target: Path) -> None:
    """Raises UserError when something is there already, other than an empty folder."""
    is_empty = target.is_dir() and not any(target.iterdir())
    if target.is_symlink() or (target.exists() and not is_empty):
        raise UserError(f"{target} is there already; give a new folder, or remove it")


@contextmanager
def made_at_once(target: Path) -> Iterator[Path]:
    """Inside, a folder to be filled, which then gets the name of `target`. Whatever goes wrong leaves nothing.

    Raises UserError when something is there already, or it cannot be written.
    """
    check_new(target)
    making = target.with_name(f"{target.name}.making")
    try:
        shutil.rmtree(making, ignore_errors=True)  # of one that was killed
        making.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror}; give another folder") from error
    try:
        yield making
        making.replace(target)
    finally:
        shutil.rmtree(making, ignore_errors=True)
