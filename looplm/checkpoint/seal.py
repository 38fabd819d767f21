"""The seal of a checkpoint: what was saved, and digests that tell whether it is still there.

`seal.json` is the last file of a checkpoint, and carries its own digest. Names in it are the only way from its content
to the file system: they are plain names below the checkpoint's folder, and what they name is a file, never a link.
"""

import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

import xxhash
from pydantic import AfterValidator, BaseModel, ConfigDict, NonNegativeInt, ValidationError

from looplm.checkpoint.tree import Kind
from looplm.data.folder import sync_folder
from looplm.errors import UserError

SEAL_FILE = "seal.json"
CONFIG_FILE = "config.json"
FORMAT = 1
MAX_SEAL_BYTES = 1 << 28
CHUNK = 1 << 22

FILE_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,254}")
LEAF_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")


class Damaged(Exception):
    """A checkpoint is not what was saved; the message names the file or leaf and what is wrong with it."""


def file_name(name: str) -> str:
    """The name of a file below a checkpoint. Raises ValueError for one that could lead elsewhere."""
    if len(name) > 1000 or not all(FILE_PART.fullmatch(part) for part in name.split("/")):
        raise ValueError(f"{name[:100]!r} is no plain name of a file below the checkpoint")
    return name


def leaf_name(name: str) -> str:
    """The dotted name of an array. Raises ValueError for anything else."""
    if len(name) > 1000 or not LEAF_NAME.fullmatch(name):
        raise ValueError(f"{name[:100]!r} is no dotted name of an array")
    return name


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class StoredFile(Record):
    size: NonNegativeInt
    """Bytes."""
    xxh128: str


class StoredArray(Record):
    shape: tuple[NonNegativeInt, ...]
    dtype: str
    digest: str
    """Of the values in memory, before they were written; see `checkpoint.digest`."""


class Seal(Record):
    format: Literal[1] = 1
    step: NonNegativeInt
    """Optimizer steps behind this state."""
    seed: NonNegativeInt
    """Of the run: with the step, the state of all random numbers."""
    data: str
    """Fingerprint of the dataset's manifest."""
    saved_at: str
    """ISO 8601, UTC."""
    metrics: dict[str, float]
    """Of the evaluation at this step; empty when there was none."""
    arrays: dict[str, dict[Annotated[str, AfterValidator(leaf_name)], StoredArray]]
    """By item (params, opt_state) and leaf."""
    files: dict[Annotated[str, AfterValidator(file_name)], StoredFile]
    """Every file of the checkpoint but the seal."""

    def kinds(self, item: str) -> dict[str, Kind]:
        """What arrays of an item were saved, by leaf; empty for an item that was not."""
        return {name: Kind(array.shape, array.dtype) for name, array in self.arrays.get(item, {}).items()}

    @property
    def num_bytes(self) -> int:
        return sum(file.size for file in self.files.values())


def write_seal(folder: Path, seal: Seal) -> None:
    """Writes the seal and waits until the disk has it."""
    with (folder / SEAL_FILE).open("xb") as file:
        file.write(seal_bytes(seal.model_dump(mode="json")))
        file.flush()
        os.fsync(file.fileno())
    sync_folder(folder)


def read_seal(folder: Path, step: int | None = None) -> Seal:
    """Reads `folder`/seal.json, which must be of this step; of the one that the folder is named after when left out.
    Raises Damaged, or UserError for a newer format."""
    content = read_plain(folder, SEAL_FILE, limit=MAX_SEAL_BYTES)
    try:
        outer = json.loads(content)
        body = outer["seal"]
        if body["format"] != FORMAT:
            raise UserError(
                f"{folder / SEAL_FILE} has format {body['format']}, and this looplm reads {FORMAT}; update looplm"
            )
        # Compared as bytes: nothing in the file may differ from what was written.
        if content != seal_bytes(body):
            raise Damaged(f"{SEAL_FILE} does not match its own digest")
        seal = Seal.model_validate_json(json.dumps(body))
    except UserError:
        raise
    except ValidationError as error:
        raise Damaged(f"{SEAL_FILE}: {error.errors()[0]['msg']}") from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise Damaged(f"{SEAL_FILE} is {'empty' if not content else 'no seal'}") from error
    if str(seal.step) != (folder.name if step is None else str(step)):
        raise Damaged(f"{SEAL_FILE} belongs to step {seal.step}")
    return seal


def digest_file(folder: Path, name: str) -> StoredFile:
    """Reads a file. Raises Damaged when it is missing, cannot be read or is not a plain file below the folder."""
    digest, size = xxhash.xxh3_128(), 0
    with _opened(folder, name) as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return StoredFile(size=size, xxh128=digest.hexdigest())


def check_files(folder: Path, seal: Seal, names: Iterable[str]) -> None:
    """Raises Damaged naming the first of the files that is not what was sealed."""
    for name in names:
        sealed, found = seal.files[name], digest_file(folder, name)
        if found.size != sealed.size:
            raise Damaged(f"{name} has {found.size} bytes instead of {sealed.size}")
        if found != sealed:
            raise Damaged(f"{name} was changed (its digest differs)")


def list_files(folder: Path) -> list[str]:
    """Names of all files below a folder, sorted; hidden ones are other programs'."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    return sorted(name for name in names if not any(part.startswith(".") for part in name.split("/")))


def read_plain(folder: Path, name: str, *, limit: int) -> bytes:
    """The content of a small file. Raises Damaged as `digest_file`, and for one that is larger than `limit` bytes."""
    with _opened(folder, name) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise Damaged(f"{name} is larger than {limit} bytes")
    return content


@contextmanager
def _opened(folder: Path, name: str) -> Iterator[BinaryIO]:
    """Inside, a disk that cannot read the file raises Damaged."""
    with os.fdopen(_open(folder, name), "rb") as file:
        try:
            yield file
        except OSError as error:
            raise Damaged(f"{name} cannot be read ({error.strerror})") from error


def _open(folder: Path, name: str) -> int:
    """Opens for reading, one part of the name after the other, so that no link is followed."""
    *parents, last = file_name(name).split("/")
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    descriptor = -1
    try:
        descriptor = os.open(folder, flags | os.O_DIRECTORY)
        for part in parents:
            below = os.open(part, flags | os.O_DIRECTORY, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
        found = os.open(last, flags, dir_fd=descriptor)
    except FileNotFoundError:
        raise Damaged(f"{name} is missing") from None
    except OSError as error:
        link = "; links are not followed" if error.errno in {errno.ELOOP, errno.ENOTDIR} else ""
        raise Damaged(f"{name} cannot be read ({error.strerror}{link})") from error
    finally:
        if descriptor >= 0:
            os.close(descriptor)
    if not stat.S_ISREG(os.fstat(found).st_mode):
        os.close(found)
        raise Damaged(f"{name} is no file")
    return found


def seal_bytes(body: dict[str, Any]) -> bytes:
    """The content of a seal's file, with its digest."""
    text = json.dumps(body, sort_keys=True)
    return json.dumps({"seal": body, "sha256": hashlib.sha256(text.encode()).hexdigest()}, indent=1).encode() + b"\n"
