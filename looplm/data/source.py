"""Find the files under the paths that a user names. Which of a folder's are taken their names say.

Links are followed, every file and folder once. What is passed over is counted and named: nobody sees a part of the
data missing. What a file holds is found when it is read (`formats.kind`).
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

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
TABLE_SUFFIXES = frozenset((".csv", ".tsv", ".parquet", ".arrow"))
COMPRESSED_SUFFIXES = {".gz": "gz", ".zst": "zst", ".zstd": "zst", ".xz": "xz", ".bz2": "bz2"}
"""On top of one of the others."""
SUFFIXES = TEXT_SUFFIXES | LINE_SUFFIXES | TABLE_SUFFIXES | {".json"}
"""Files taken from a folder, and token files; a file named by the user is taken whatever its suffix."""
_BY_POSITION = frozenset((".parquet", ".arrow", ".bin", ".npy"))
_ARCHIVES = (".zip", ".tar", ".tgz", ".tbz2", ".txz", ".7z", ".rar", *(f".tar{end}" for end in COMPRESSED_SUFFIXES))
_LLM_C_MAGICS = tuple(number.to_bytes(4, "little") for number in (20240520, 20240801))
_NPY_MAGIC = b"\x93NUMPY"


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

    @property
    def suffix(self) -> str:
        """The end of its name, below that of a compression, in small letters."""
        return _suffixes(self.path)[0]

    @property
    def compression(self) -> str | None:
        """How it is compressed, by its name."""
        return COMPRESSED_SUFFIXES.get(_suffixes(self.path)[1])


def find_files(inputs: Sequence[Path], account: Account | None = None) -> list[SourceFile]:
    """List the files under `inputs`: in the order given, each folder sorted by relative path; each file once.

    Folders are walked recursively, links to folders too. The account gets what is passed over in them: hidden entries,
    links whose target has gone, archives, what is no regular file, and files of unknown suffix; and the note
    `repeated_input` for what is found again, by another link perhaps. Raises UserError for a path that does not exist
    or cannot be read, for an archive, and when no file is found.
    """
    account = account or Account()
    files: list[SourceFile] = []
    seen: set[str] = set()
    for root in map(Path, inputs):
        for name, path in _found(root, account):
            # A folder and a file in it may both be named; training on a text twice is never meant.
            real = os.path.realpath(path)
            if real in seen:
                account.notes["repeated_input"] += 1
                continue
            if os.path.isdir(root) and (passed_over := _not_taken(path)):
                account.skip(name, passed_over)
                continue
            seen.add(real)
            suffix, compression = _suffixes(path)
            if suffix in _BY_POSITION and compression:
                raise UserError(f"input {path}: {suffix} files are read by position; decompress it first")
            files.append(SourceFile(path, name, path.stat().st_size, _changed(path)))
    if not files:
        left = [place for shown in account.examples.values() for place in shown]
        raise UserError(
            f"no text file in {', '.join(map(str, inputs)) or 'an empty list of inputs'}"
            f"{f', but {chr(32).join(left[:3])}' if left else ''}; folders are searched for "
            f"{' '.join(sorted(SUFFIXES))}, with {' '.join(COMPRESSED_SUFFIXES)}; name other files one by one"
        )
    return files


def _found(root: Path, account: Account) -> list[tuple[str, Path]]:
    """The files that are taken of one input, with their names."""
    if os.path.isdir(root):  # unlike Path, also of names that no file system takes
        return sorted((path.relative_to(root).as_posix(), path) for path in _walk(root, account))
    if not os.path.exists(root):
        target = f", it is a link to {os.readlink(root)} that leads nowhere" if os.path.islink(root) else ""
        raise UserError(f"input {root} does not exist{target}; give a file or a folder of files")
    if not os.path.isfile(root):
        raise UserError(f"input {root} is no regular file; write what it gives to one first")
    if root.name.lower().endswith(_ARCHIVES):
        raise UserError(f"input {root} is an archive; unpack it, and give the folder")
    if root.suffix == ".idx" and root.with_suffix(".bin").is_file():
        raise UserError(f"input {root} is an index; give {root.with_suffix('.bin').name}, which is read with it")
    return [(root.name, root)]


def _walk(root: Path, account: Account) -> Iterator[Path]:
    visited: set[str] = set()

    def passed_over(path: Path, reason: str, detail: str = "") -> None:
        account.skip(path.relative_to(root).as_posix(), Skipped(-1, reason, detail))

    def refuse(error: OSError) -> None:
        raise UserError(
            f"cannot read the folder {error.filename}: {error.strerror}; change its rights, or move it away"
        )

    for folder, subfolders, names in os.walk(root, onerror=refuse, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:  # by another link, or round in a circle
            account.notes["repeated_input"] += 1
            subfolders.clear()
            continue
        visited.add(real)
        for name in sorted((*subfolders, *names)):
            # Folders of builds come and go.
            if name.startswith(".") and not name.endswith(".partial"):
                passed_over(Path(folder, name), "hidden")
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(names):
            path = Path(folder, name)
            if name.startswith("."):
                continue
            if not path.exists():
                passed_over(path, "dangling_link", f"{os.readlink(path)} is not there" if path.is_symlink() else "")
            elif not path.is_file():
                passed_over(path, "no_regular_file")
            elif path.suffix != ".idx" or not path.with_suffix(".bin").is_file():  # it is read with its tokens
                yield path


def _not_taken(path: Path) -> Skipped | None:
    """Why a file of a folder is not taken, by its name; None if it is."""
    if path.name.lower().endswith(_ARCHIVES):
        return Skipped(-1, "archive", "unpack it to take what it holds")
    return None if _suffixes(path)[0] in SUFFIXES or holds_tokens(path) else Skipped(-1, "unknown_suffix")


def _suffixes(path: Path) -> tuple[str, str]:
    last = path.suffix.lower()
    return (path.with_suffix("").suffix.lower(), last) if last in COMPRESSED_SUFFIXES else (last, "")


def _changed(path: Path) -> int:
    index = path.with_suffix(".idx")
    beside = index.stat().st_mtime_ns if path.suffix == ".bin" and index.is_file() else 0
    return max(path.stat().st_mtime_ns, beside)


def holds_tokens(path: Path) -> bool:
    """Return whether a file says itself that it holds tokens, or has an index: other .bin files are in folders, too."""
    if path.suffix.lower() not in (".bin", ".npy"):
        return False
    if path.with_suffix(".idx").is_file():
        return True
    try:
        with path.open("rb") as file:
            return file.read(6).startswith((*_LLM_C_MAGICS, _NPY_MAGIC))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; change its rights, or move it away") from None
