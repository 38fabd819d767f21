"""The input of a build in groups, and the folder that holds what is done of them.

A group is some consecutive files, or one large one. Its folder is named by the digest of all that its units depend on
(files with their sizes and times, tokenizer, reading), so whatever still holds after a kill, an added file or another
option is found again, and nothing else is.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from looplm.data.account import Account
from looplm.data.folder import sync_folder, write_synced
from looplm.data.formats.document import Reading
from looplm.data.source import Source, SourceFile

FORMAT = 5
"""Of units and of the rules that make documents of files: a change of either needs another number, one of the rules
also another `writer.RULES`."""
_GROUP_BYTES = 64 << 20
_DONE_FILE = "group.json"


@dataclass(frozen=True)
class Group:
    """Some files, and the folder for their units."""

    files: tuple[SourceFile, ...]
    folder: Path

    def unit(self, number: int) -> Path:
        return self.folder / f"{number:06d}.unit"

    def read_done(self) -> "Done | None":
        """Return what `write_done` wrote; None unless the group is finished."""
        try:
            fields = json.loads((self.folder / _DONE_FILE).read_bytes())
        except FileNotFoundError:
            return None
        sources = tuple(Source(**source) for source in fields["sources"])
        return Done(fields["num_units"], sources, Account.of(fields))

    def write_done(self, done: "Done") -> None:
        """Say that all units are there."""
        fields = {
            "num_units": done.num_units,
            "sources": [asdict(source) for source in done.sources],
            **vars(done.account),
        }
        partial = self.folder / f"{_DONE_FILE}.partial"
        write_synced(partial, json.dumps(fields).encode())
        partial.replace(self.folder / _DONE_FILE)
        sync_folder(self.folder)


@dataclass(frozen=True)
class Done:
    """What is known of a finished group beside its units."""

    num_units: int
    sources: tuple[Source, ...]
    account: Account
    """Of what was left out in reading; units have accounts of their own."""


def plan(
    files: Sequence[SourceFile], folder: Path, reading: Reading, fingerprint: str | None, dtype: np.dtype
) -> list[Group]:
    """Cut the files into groups, in order; their folders are made below `folder` when they are worked on."""
    groups: list[Group] = []
    pending: list[SourceFile] = []
    num_bytes = 0
    for file in files:
        if pending and num_bytes + file.size > _GROUP_BYTES:
            groups.append(_group(pending, folder, reading, fingerprint, dtype))
            pending, num_bytes = [], 0
        pending.append(file)
        num_bytes += file.size
    groups.append(_group(pending, folder, reading, fingerprint, dtype))
    return groups


def _group(
    files: Sequence[SourceFile], folder: Path, reading: Reading, fingerprint: str | None, dtype: np.dtype
) -> Group:
    # What could be finished without taking damaged files is the same with it.
    listed = [(str(file.path.absolute()), file.name, file.size, file.mtime_ns) for file in files]
    key = json.dumps([FORMAT, fingerprint, dtype.str, {**reading.listed(), "skip_damaged": None}, listed])
    return Group(tuple(files), folder / hashlib.sha256(key.encode()).hexdigest()[:32])
