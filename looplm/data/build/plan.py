"""The input of a build in groups, and the folder that holds what is done of them.

A group is some consecutive files, or one large one. Its folder is named by the digest of all that its units depend on
(files with their sizes and times, tokenizer, reading), so whatever still holds after a kill, an added file or another
option is found again, and nothing else is.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from looplm.data.account import Account
from looplm.data.build.unit import UnitInfo
from looplm.data.formats.document import Reading
from looplm.data.place import Place
from looplm.data.source import Source, SourceFile

FORMAT = 6
"""Of units and of the rules that make documents of files: a change of either needs another number, one of the rules
also another `request.RULES`."""
_GROUP_BYTES = 8 << 20
"""The grain in which parts of a build share its input."""
_DONE_FILE = "group.json"


@dataclass(frozen=True)
class Group:
    """Some files, and the folder for their units."""

    files: tuple[SourceFile, ...]
    folder: str
    """In the place of the build."""

    def below(self, folder: str) -> "Group":
        """Return the group with its folder in another one."""
        return replace(self, folder=f"{folder}/{self.folder}")

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(file.size for file in self.files)

    def unit(self, number: int) -> str:
        return unit_name(self.folder, number)

    def read_done(self, place: Place) -> "Done | None":
        """Return what `write_done` wrote; None unless the group is finished."""
        data = place.read(f"{self.folder}/{_DONE_FILE}")
        return None if data is None else Done.of(json.loads(data))

    def write_done(self, place: Place, done: "Done") -> None:
        """Say that all units are there."""
        place.write(f"{self.folder}/{_DONE_FILE}", json.dumps(done.listed()).encode())


@dataclass(frozen=True)
class Done:
    """What is known of a finished group beside the contents of its units."""

    folder: str
    units: tuple[UnitInfo, ...]
    sources: tuple[Source, ...]
    account: Account
    """Of what was left out in reading; units have accounts of their own."""

    def unit(self, number: int) -> str:
        return unit_name(self.folder, number)

    def listed(self) -> dict[str, Any]:
        """Return the fields as they are written."""
        return {
            "folder": self.folder,
            "units": [unit.listed() for unit in self.units],
            "sources": [asdict(source) for source in self.sources],
            **vars(self.account),
        }

    @classmethod
    def of(cls, fields: dict[str, Any]) -> "Done":
        """Return what `listed` gave."""
        units, sources = map(UnitInfo.of, fields["units"]), (Source(**source) for source in fields["sources"])
        return cls(fields["folder"], tuple(units), tuple(sources), Account.of(fields))


def unit_name(folder: str, number: int) -> str:
    """Return the name of a unit of the group in that folder."""
    return f"{folder}/{number:06d}.unit"


def plan(files: Sequence[SourceFile], reading: Reading, fingerprint: str | None, dtype: np.dtype) -> list[Group]:
    """Cut the files into groups, in order."""
    groups: list[Group] = []
    pending: list[SourceFile] = []
    num_bytes = 0
    for file in files:
        if pending and num_bytes + file.size > _GROUP_BYTES:
            groups.append(_group(pending, reading, fingerprint, dtype))
            pending, num_bytes = [], 0
        pending.append(file)
        num_bytes += file.size
    groups.append(_group(pending, reading, fingerprint, dtype))
    return groups


def share(groups: Sequence[Group], number: int, count: int) -> list[Group]:
    """Return the groups of share `number` (from 0) of `count`: neighbours, of about as many bytes in every share."""
    total = sum(group.size for group in groups)
    mine, before = [], 0
    for group in groups:
        # By the middle of the group; where all files are empty, the first share has them.
        if min((2 * before + group.size) * count // (2 * max(total, 1)), count - 1) == number:
            mine.append(group)
        before += group.size
    return mine


def _group(files: Sequence[SourceFile], reading: Reading, fingerprint: str | None, dtype: np.dtype) -> Group:
    # What could be finished without taking damaged files is the same with it.
    listed = [(str(file.path.absolute()), file.name, file.size, file.mtime_ns) for file in files]
    key = json.dumps([FORMAT, fingerprint, dtype.str, {**reading.listed(), "skip_damaged": None}, listed])
    return Group(tuple(files), hashlib.sha256(key.encode()).hexdigest()[:32])
