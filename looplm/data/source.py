"""Find the files under the paths that a user names, and say what they are by their names.

Deliberately absent: reading them (`formats`).
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from looplm.data.account import Account, Skipped
from looplm.errors import UserError

# fmt: off
TEXT_SUFFIXES = frozenset(
    (
        ".txt", ".md", ".rst", ".tex",
        ".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".cu", ".cs", ".java",
        ".kt", ".scala", ".js", ".jsx", ".ts", ".tsx", ".go", ".rs", ".swift", ".rb",
        ".php", ".sh", ".sql", ".lua", ".jl", ".r", ".hs", ".ml",
    )
)
# fmt: on
LINE_SUFFIXES = frozenset((".jsonl", ".ndjson"))
COMPRESSED_SUFFIXES = frozenset((".gz", ".zst"))
"""On top of one of the others."""
SUFFIXES = TEXT_SUFFIXES | LINE_SUFFIXES | {".parquet"}
"""Files taken from a folder; a file named by the user is taken whatever its suffix."""

Kind = Literal["text", "jsonl", "parquet", "tokens"]
_LLM_C_MAGICS = tuple(number.to_bytes(4, "little") for number in (20240520, 20240801))


@dataclass(frozen=True, slots=True)
class Source:
    """A file that was read, as a line of `sources.jsonl`."""

    name: str
    size: int
    """Bytes on disk."""
    sha256: str
    """Hex digest of the file."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file to read."""

    path: Path
    name: str
    """Path relative to the folder the user named, with forward slashes; the file's name if the file was named."""
    size: int
    """Bytes on disk."""
    mtime_ns: int
    """When it was changed, or its index was."""
    kind: Kind
    compression: Literal["gz", "zst"] | None


def find_files(inputs: Sequence[Path], account: Account | None = None) -> list[SourceFile]:
    """List the files under `inputs`: in the order given, each folder sorted by relative path; each file once.

    Folders are walked recursively without hidden entries and without following links to folders. The account gets
    `unknown_suffix` for a file of a folder that is not taken, and the note `repeated_input` for one that is found
    again. Raises UserError for a path that does not exist and when no file is found.
    """
    account = account or Account()
    files: list[SourceFile] = []
    seen: set[str] = set()
    for root in map(Path, inputs):
        if os.path.isdir(root):  # unlike Path, also of names that no file system takes
            found = sorted((path.relative_to(root).as_posix(), path) for path in _walk(root))
        elif os.path.isfile(root):
            found = [(root.name, root)]
        elif os.path.exists(root):
            raise UserError(f"input {root} is no regular file; write what it gives to one first")
        else:
            raise UserError(f"input {root} does not exist; give a file or a folder of files")
        for name, path in found:
            # A folder and a file in it may both be named; training on a text twice is never meant.
            real = os.path.realpath(path)
            if real in seen:
                account.notes["repeated_input"] += 1
                continue
            if os.path.isdir(root) and not _is_taken(path):
                account.skip(name, Skipped(-1, "unknown_suffix"))
                continue
            seen.add(real)
            kind, compression = _kind(path)
            files.append(SourceFile(path, name, path.stat().st_size, _changed(path), kind, compression))
    if not files:
        raise UserError(
            f"no text file in {', '.join(map(str, inputs)) or 'an empty list of inputs'}; folders are searched for "
            f"{' '.join(sorted(SUFFIXES))}, with .gz or .zst; name other files one by one"
        )
    return files


def _kind(path: Path) -> tuple[Kind, Literal["gz", "zst"] | None]:
    suffix, compression = path.suffix.lower(), None
    if suffix in COMPRESSED_SUFFIXES:
        compression, suffix = suffix[1:], path.with_suffix("").suffix.lower()
    kinds: dict[str, Kind] = {".parquet": "parquet", ".bin": "tokens", **dict.fromkeys(LINE_SUFFIXES, "jsonl")}
    kind = kinds.get(suffix, "text")
    if compression and kind in ("parquet", "tokens"):
        raise UserError(f"input {path}: {suffix} files are read by position; decompress it first")
    return kind, compression  # type: ignore[return-value]


def _changed(path: Path) -> int:
    index = path.with_suffix(".idx")
    beside = index.stat().st_mtime_ns if path.suffix == ".bin" and index.is_file() else 0
    return max(path.stat().st_mtime_ns, beside)


def _walk(root: Path) -> Iterator[Path]:
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in names:
            path = Path(folder, name)
            is_index = path.suffix == ".idx" and path.with_suffix(".bin").is_file()  # it is read with its tokens
            if not name.startswith(".") and path.is_file() and not is_index:
                yield path


def _is_taken(path: Path) -> bool:
    suffix = path.suffix.lower()
    if suffix in COMPRESSED_SUFFIXES:
        return path.with_suffix("").suffix.lower() in SUFFIXES
    return suffix in SUFFIXES or (suffix == ".bin" and _holds_tokens(path))


def _holds_tokens(path: Path) -> bool:
    """Of a .bin file: others than token files are in folders, too."""
    if path.with_suffix(".idx").is_file():
        return True
    try:
        with path.open("rb") as file:
            return file.read(4) in _LLM_C_MAGICS
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; change its rights, or move it away") from None
