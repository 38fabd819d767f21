"""One part of a build on its own: units of its share of the input, and a file that says what they are.

Parts lie side by side in one folder, on a disk or at an address, and are put together by `join`. Every machine lists
the same files and takes its share of them, so no machine waits for another. A part that was killed goes on with the
same command; started twice by a scheduler, both write the same bytes.
"""

import hashlib
import json
import re
import time
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from looplm.data.account import Account, reasons
from looplm.data.build.encode import encode_groups
from looplm.data.build.plan import FORMAT, Done, share
from looplm.data.build.report import REPORT_FILE, Meter, Progress
from looplm.data.build.request import RULES, Options, Request
from looplm.data.build.work import chosen_workers, locked
from looplm.data.manifest import MANIFEST_FILE
from looplm.data.place import DiskFolder, Place, check_writable, place_at
from looplm.data.source import Source, SourceFile
from looplm.errors import UserError

PART_FILE = "part.json"
"""Written last: a part without it is not finished."""
TOKENIZER_FOLDER = "tokenizer"
"""Of the first part, which keeps it for all."""
_GIVEN = re.compile(r"(\d+)(?:-(\d+))?/(\d+)")


class Part(NamedTuple):
    """Part `number` of `num_parts`, from 1."""

    number: int
    num_parts: int

    def __str__(self) -> str:
        return f"{self.number}/{self.num_parts}"

    @property
    def folder(self) -> str:
        return f"part-{self.number:05d}-of-{self.num_parts:05d}"

    @classmethod
    def of_file(cls, name: str) -> "Part | None":
        """Return the part that a file belongs to, by the folder that it is in."""
        found = re.match(r"part-(\d{5,})-of-(\d{5,})/", name)
        return cls(int(found[1]), int(found[2])) if found else None


def read_parts(text: str) -> list[Part]:
    """Return the parts that `I/N` or `I-J/N` names. Raises UserError for anything else."""
    found = _GIVEN.fullmatch(text)
    first, last, count = (int(found[1]), int(found[2] or found[1]), int(found[3])) if found else (0, 0, 0)
    if not 1 <= first <= last <= count:
        raise UserError(f"--part {text} is no part: write I/N with I from 1 to N, e.g. 3/7, or several as 3-5/7")
    return [Part(number, count) for number in range(first, last + 1)]


@dataclass(frozen=True)
class PartFile:
    """What `part.json` says."""

    part: Part
    rules: tuple[int, int]
    """Of documents and units."""
    options: Options
    files: dict[str, Any]
    """Of the whole input: how many, their bytes, and a digest of their names and sizes."""
    template: str
    besides: Account
    done: tuple[Done, ...]

    def listed(self) -> dict[str, Any]:
        """Return the fields as they are written."""
        return {
            "part": list(self.part),
            "rules": list(self.rules),
            "options": self.options.listed(),
            "files": self.files,
            "template": self.template,
            "besides": vars(self.besides),
            "done": [done.listed() for done in self.done],
        }

    @classmethod
    def read(cls, place: Place, part: Part) -> "PartFile | None":
        """Read that of a part; None if it is not finished. Raises UserError if it is damaged."""
        data = place.read(f"{part.folder}/{PART_FILE}")
        if data is None:
            return None
        try:
            fields = json.loads(data)
            done = tuple(map(Done.of, fields["done"]))
            rules = tuple(fields["rules"])
            options, besides = Options.of(fields["options"]), Account.of(fields["besides"])
            return cls(Part(*fields["part"]), rules, options, fields["files"], fields["template"], besides, done)
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"{place.location}/{part.folder}/{PART_FILE} is damaged, or of another version of looplm; remove "
                f"{part.folder} and build it again"
            ) from None

    def difference(self, other: "PartFile") -> str:
        """Return `KEY is A, and B in the other` for the first thing in which two builds differ; empty if in none.

        Whether damaged files are taken is no such thing: what could be built without is the same with it.
        """
        mine, theirs = self._build(), other._build()
        for key in [*mine, *(key for key in theirs if key not in mine)]:
            if mine.get(key) != theirs.get(key):
                return f"{key} is {_shown(mine.get(key))}, not {_shown(theirs.get(key))}"
        return ""

    def _build(self) -> dict[str, Any]:
        options = self.options.listed()
        reading = {**options.pop("reading"), "skip_damaged": None}
        files = f"{self.files['number']} files of {self.files['bytes']} bytes, {self.files['digest'][:8]}"
        return {"version": self.rules, "input": files, **options, **reading}


@dataclass(frozen=True)
class PartReport:
    """A part that is there."""

    file: PartFile
    place: str
    seconds: float
    was_there: bool = False
    """Nothing was done."""

    def __str__(self) -> str:
        done = self.file.done
        num_files, num_bytes = sum(len(group.sources) for group in done), sum(s.size for g in done for s in g.sources)
        units = [unit for group in done for unit in group.units]
        num_documents, num_tokens = sum(u.num_documents for u in units), sum(u.num_tokens for u in units)
        took = "was there already" if self.was_there else f"in {self.seconds:.1f} s"
        return (
            f"part {self.file.part} in {self.place}: {num_files} files of {num_bytes / 1e6:.1f} MB, {num_documents} "
            f"documents and {num_tokens / 1e6:.2f} M tokens {took}; skipped: {reasons(self.account.skipped)}"
        )

    @property
    def account(self) -> Account:
        """Of what was left out of this part."""
        account = Account()
        for group in self.file.done:
            account += group.account
            for unit in group.units:
                account += unit.account
        return account


def build_part(
    request: Request,
    part: Part,
    where: str,
    num_workers: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> "PartReport":
    """Make one part of what is asked for in the folder `where`, a path or an address.

    When it is there already, nothing is done. Raises UserError for damaged input, and where another build's part is.
    """
    started, place = time.monotonic(), place_at(where)
    options, encoder = request.options, request.encoder
    groups = [group.below(part.folder) for group in share(request.groups, part.number - 1, part.num_parts)]
    mine = PartFile(part, (RULES, FORMAT), options, listed_input(request.files), request.template, request.besides, ())
    check_writable(place)
    if place.read(MANIFEST_FILE) or place.read(REPORT_FILE):
        raise UserError(f"--out {place.location} is a dataset; parts need a folder of their own")
    if (there := PartFile.read(place, part)) is not None:
        if difference := there.difference(mine):
            raise UserError(
                f"{place.location}/{part.folder} is of another build, whose {difference}; remove it or choose another "
                "--out"
            )
        # Where files were changed since, or lie elsewhere, the folders have other names.
        if [group.folder for group in there.done] == [group.folder for group in groups]:
            return PartReport(there, place.location, 0.0, was_there=True)
    total_bytes = sum(group.size for group in groups)
    num_workers = chosen_workers(num_workers, total_bytes)
    meter = Meter(sum(len(group.files) for group in groups), total_bytes, started, progress)
    folder = f"{place.location}/{part.folder}"
    with locked(Path(folder), folder) if isinstance(place, DiskFolder) else nullcontext(), closing(place):
        mine = replace(mine, done=tuple(encode_groups(place, groups, encoder, num_workers, meter.encoded)))
        if part.number == 1 and request.tokenizer:
            for name, data in request.tokenizer.files.items():
                place.write(f"{part.folder}/{TOKENIZER_FOLDER}/{name}", data)
        place.write(f"{part.folder}/{PART_FILE}", json.dumps(mine.listed()).encode())
    return PartReport(mine, place.location, time.monotonic() - started)


def listed_input(files: Sequence[SourceFile | Source]) -> dict[str, Any]:
    """Return what `PartFile.files` is of these files."""
    listed = json.dumps([(file.name, file.size) for file in files])
    digest = hashlib.sha256(listed.encode()).hexdigest()
    return {"number": len(files), "bytes": sum(file.size for file in files), "digest": digest}


def _shown(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
