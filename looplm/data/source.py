"""Find text files under the paths a user names and read documents from them.

One file is one document. Reading is strict: a file that is not UTF-8 text is skipped and counted by reason, never
repaired. Deliberately absent: tokenization, deduplication and filtering by quality.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from looplm.errors import UserError

# fmt: off
SUFFIXES = frozenset(
    (
        ".txt", ".md", ".rst", ".tex",
        ".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".cu", ".cs", ".java",
        ".kt", ".scala", ".js", ".jsx", ".ts", ".tsx", ".go", ".rs", ".swift", ".rb",
        ".php", ".sh", ".sql", ".lua", ".jl", ".r", ".hs", ".ml",
    )
)
# fmt: on
"""Files taken from a folder; a file named by the user is taken whatever its suffix."""

SkipReason = Literal["empty", "invalid_utf8", "nul"]


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file to read."""

    path: Path
    name: str
    """Path relative to the folder the user named, with forward slashes; the file's name if the file was named."""
    size: int
    """Bytes on disk."""


@dataclass(frozen=True, slots=True)
class Document:
    """A text and where it came from."""

    name: str
    text: str
    num_bytes: int
    """Bytes of the text in UTF-8, without a byte order mark."""
    sha256: str
    """Hex digest of those bytes."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that is not a document."""

    name: str
    reason: SkipReason


def find_files(inputs: Sequence[Path]) -> list[SourceFile]:
    """List the files under `inputs`: in the order given, each folder sorted by relative path; each file once.

    Folders are walked recursively without hidden entries and without following links to folders. Raises UserError
    for a path that does not exist and when no file is found.
    """
    files: list[SourceFile] = []
    seen: set[str] = set()
    for root in map(Path, inputs):
        if root.is_dir():
            found = sorted((path.relative_to(root).as_posix(), path) for path in _walk(root))
        elif root.exists():
            found = [(root.name, root)]
        else:
            raise UserError(f"input {root} does not exist; give a text file or a folder of text files")
        for name, path in found:
            # A folder and a file in it may both be named; training on a text twice is never meant.
            real = os.path.realpath(path)
            if real not in seen:
                seen.add(real)
                files.append(SourceFile(path, name, path.stat().st_size))
    if not files:
        raise UserError(
            f"no text file in {', '.join(map(str, inputs)) or 'an empty list of inputs'}; folders are searched for "
            f"{' '.join(sorted(SUFFIXES))}; name other files one by one"
        )
    return files


def read_file(file: SourceFile) -> Document | Skipped:
    """Read a file as one document. Raises UserError when the file cannot be opened."""
    try:
        data = file.path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {file.path}: {error.strerror}; mend its permissions or leave it out") from None
    data = data.removeprefix(b"\xef\xbb\xbf")
    if b"\0" in data:
        return Skipped(file.name, "nul")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return Skipped(file.name, "invalid_utf8")
    if not text or text.isspace():
        return Skipped(file.name, "empty")
    return Document(file.name, text, len(data), hashlib.sha256(data).hexdigest())


def read_documents(inputs: Sequence[Path], skipped: Counter[str] | None = None) -> Iterator[Document]:
    """Yield the documents of `inputs` in the order of `find_files`; count skipped files by reason in `skipped`.

    Raises UserError like `find_files`, and at the end when every file was skipped.
    """
    counts: Counter[str] = Counter() if skipped is None else skipped
    num_documents = 0
    for file in find_files(inputs):
        document = read_file(file)
        if isinstance(document, Skipped):
            counts[document.reason] += 1
        else:
            num_documents += 1
            yield document
    if num_documents == 0:
        raise no_documents(inputs, counts)


def no_documents(inputs: Sequence[Path], skipped: Counter[str]) -> UserError:
    """Say that every file was skipped, and why."""
    return UserError(f"no document in {', '.join(map(str, inputs))}: {reasons(skipped)}; give text files in UTF-8")


def reasons(skipped: Mapping[str, int]) -> str:
    """Return `2 empty, 1 nul` of files that gave no document, or `none`."""
    return ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items())) or "none"


def _walk(root: Path) -> Iterator[Path]:
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in names:
            path = Path(folder, name)
            if not name.startswith(".") and path.suffix.lower() in SUFFIXES and path.is_file():
                yield path
