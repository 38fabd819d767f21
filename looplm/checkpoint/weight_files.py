"""The safetensors files of a model folder: which tensors they hold and under which names; read one by one."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from looplm.errors import UserError

INDEX = "model.safetensors.index.json"
POINTER = b"version https://git-lfs.github.com/spec/"
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Parts of a name that torch's wrappers put in: data parallel, compile, FSDP, activation checkpoints."""


class Stored(NamedTuple):
    """Where a tensor is, its shape, and its type in the words of safetensors."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """All tensors by the names that the files give them, from the headers alone.

    Raises UserError where a file is missing, damaged, a pointer or a dangling link, or holds another one's tensor.
    """
    try:
        from safetensors import safe_open
    except ImportError as error:
        raise UserError("reading safetensors needs the package safetensors; pip install looplm[hf]") from error
    stored: dict[str, Stored] = {}
    for file in _files(folder):
        refuse_pointer(file)
        with reading(file), safe_open(file, framework="flax") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            held = {name: Stored(file, name, tuple(at.get_shape()), at.get_dtype()) for name, at in slices.items()}
        if twice := sorted(set(held) & set(stored)):
            raise UserError(
                f"{file} and {stored[twice[0]].file} both hold {twice[0]!r}; keep the files of one model in the folder"
            )
        stored |= held
    return stored


def read(tensor: Stored) -> Any:
    from safetensors import safe_open

    with reading(tensor.file), safe_open(tensor.file, framework="flax") as opened:  # numpy has no bfloat16
        return opened.get_tensor(tensor.name)


def without_wrappers(stored: dict[str, Stored], wanted: set[str]) -> dict[str, Stored]:
    """The tensors by their names in the unwrapped model, where a wrapper changed all of them: parts in `WRAPPERS`, and
    one prefix before every name. Names are left as they are where that gives not all that is wanted, or one name twice.
    """
    if wanted <= set(stored):
        return stored
    bare = {".".join(part for part in name.split(".") if part not in WRAPPERS): at for name, at in stored.items()}
    while len(bare) == len(stored) and not wanted <= set(bare):
        first = {name.partition(".")[0] for name in bare}
        if len(first) != 1 or first & set(bare):
            return stored
        prefix = f"{first.pop()}."
        bare = {name.removeprefix(prefix): at for name, at in bare.items()}
    return bare if len(bare) == len(stored) else stored


def refuse_pointer(file: Path) -> None:
    """Raises UserError for a text that stands for a file which was not downloaded, and for a link to nothing."""
    if file.is_symlink() and not file.exists():
        raise UserError(f"{file} is a link to {file.readlink()}, which is not there; copy the folder with its files")
    with suppress(OSError), file.open("rb") as opened:  # who reads it says so
        if opened.read(len(POINTER)) == POINTER:
            raise UserError(f"{file} is a pointer of git-lfs and not the file; run `git lfs pull` in {file.parent}")


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Inside, a file that is not what it should be is a UserError. The library checks lengths and offsets against the
    file and reads nothing else, so a forged header costs no memory."""
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{file} is no sound safetensors file ({reason}); download it again") from error


def _files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("model*.safetensors"))
    if missing := _indexed(folder / INDEX) - {file.name for file in files} if (folder / INDEX).is_file() else set():
        raise UserError(f"{folder} lacks {', '.join(sorted(missing)[:3])}, which {INDEX} names; download the rest")
    if not files:
        raise UserError(
            f"{folder} holds no model*.safetensors; give the folder of a downloaded model, and convert weights "
            "in PyTorch's own files with tools/to_safetensors.py"
        )
    return files


def _indexed(index: Path) -> set[str]:
    """Files that the index of a sharded model names."""
    refuse_pointer(index)
    try:
        named = {str(name) for name in json.loads(index.read_text())["weight_map"].values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{index} cannot be read ({error}); download it again") from error
    if outside := sorted(name for name in named if Path(name).name != name or name == ".."):
        raise UserError(f"{index} names {outside[0]!r}, which is no file of its folder; download the model again")
    return named
