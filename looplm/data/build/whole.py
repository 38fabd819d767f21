"""From units to the dataset folder: all of it, in a hidden folder first, or what is there already."""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from looplm.data.account import Account
from looplm.data.build.assemble import Documents, write_documents
from looplm.data.build.plan import Done
from looplm.data.build.report import REPORT_FILE, WHOLE, BuildReport, Meter
from looplm.data.build.request import Options, unit_dtype
from looplm.data.build.work import move
from looplm.data.dataset import TokenDataset
from looplm.data.folder import write_synced
from looplm.data.formats.document import check_most_are_taken, no_documents
from looplm.data.manifest import MANIFEST_FILE, SOURCES_FILE, Manifest
from looplm.data.place import DiskFolder, Place, place_at
from looplm.data.remote import RemoteFolder, below, is_remote
from looplm.data.shard import FolderWriter
from looplm.data.source import Source
from looplm.data.tokenizer import Tokenizer
from looplm.errors import UserError

BEGUN_FILE = "begun"
"""At an address that is being written to: the build. A folder on a disk is renamed when it is whole."""


@dataclass(frozen=True)
class Whole:
    """All units of a build, and what is to be made of them."""

    place: Place
    done: Sequence[Done]
    """All groups, in the order of the input."""
    options: Options
    tokenizer: Tokenizer | None
    template: str
    besides: Account
    """What was passed over in looking for the files."""
    inputs: Sequence[Path | str]
    """For messages."""

    @property
    def sources(self) -> list[Source]:
        """The files, in order."""
        return [source for done in self.done for source in done.sources]

    def write(self, out: Path | str, work: Path, meter: Meter, num_workers: int, started: float) -> BuildReport:
        """Write the dataset in the folder `work`, then move it to `out`, a path or an address.

        To an address every file goes when it is whole, the report last. Raises UserError when there is no document.
        """
        staging, account = work / "dataset", Account()
        meter.writing()
        build = self.options.build(self.sources)
        target = RemoteFolder(str(out)) if is_remote(out) else None
        if target is not None:
            target.write(BEGUN_FILE, build.encode())

        def send(path: Path) -> None:
            if target is not None:
                target.write(path.relative_to(staging).as_posix(), path.read_bytes())
                path.unlink()

        datasets = self._datasets(staging, account, meter, send)
        account += self.besides  # only now: what else lies there makes no other dataset
        skipped, notes = (dict(sorted(counts.items())) for counts in (account.skipped, account.notes))
        seconds = time.monotonic() - started
        report = BuildReport(
            out, datasets, skipped, notes, account.examples, len(self.sources), seconds, num_workers, self.template
        )
        write_synced(staging / REPORT_FILE, report.dump(build, self.options.listed()))
        send(staging / REPORT_FILE)
        if target is None:
            move(staging, Path(out))
        else:
            target.remove(BEGUN_FILE)
        return report

    def _datasets(
        self, folder: Path, account: Account, meter: Meter, send: Callable[[Path], None]
    ) -> dict[str, Manifest]:
        options, dtype, has_mask = self.options, unit_dtype(self.tokenizer), self.options.reading.examples is not None
        documents = Documents(self.place, self.done, dtype, has_mask=has_mask)
        max_token = self._account_for(account)
        if options.dedup and (num_copies := documents.keep_first_copies()):
            account.skipped["duplicate"] += num_copies
        # Often a mistake of collecting; without `dedup` they are taken as they are.
        digests = [source.sha256 for source in self.sources if source.size]
        if not options.dedup and (num_copies := len(digests) - len(set(digests))):
            account.notes["identical_file"] += num_copies
        if documents.table.size == 0:
            raise no_documents(self.inputs, account)
        if not options.reading.skip_damaged:
            check_most_are_taken(self.inputs, account)
        shutil.rmtree(folder, ignore_errors=True)
        datasets = {}
        for name, table in documents.sides(options.validation_fraction).items():
            if table.size == 0:
                raise UserError(
                    f"validation_fraction={options.validation_fraction} of {documents.table.size} whole documents "
                    f"leaves the {name} part empty; change the fraction or give more documents"
                )
            (folder / name).mkdir(parents=True, exist_ok=True)
            with FolderWriter(
                folder / name,
                self.tokenizer,
                vocab_size=options.vocab_size or max_token + 1,
                has_loss_mask=has_mask,
                template=options.reading.template,
                whole=send,
            ) as writer:
                write_documents(writer, documents, table, shuffle_seed=options.shuffle_seed, progress=meter.wrote)
                datasets[name] = writer.finish(self.sources, account.skipped)
        return datasets

    def _account_for(self, account: Account) -> int:
        """Sum up what was left out, in the order of the input; return the largest token."""
        for done in self.done:
            account += done.account
            for unit in done.units:
                account += unit.account
        return max((unit.max_token for done in self.done for unit in done.units), default=0)


def there_already(out: Path | str, build: str, options: Options, digests: Iterable[str]) -> BuildReport | None:
    """Return the report of the dataset at `out` if this very build made it, of files with these very digests, in order.

    Raises UserError for anything else, but for a dataset at an address that was not written to its end.
    """
    place = place_at(out)
    if not os.path.lexists(out) if isinstance(place, DiskFolder) else not place.names():
        return None
    if isinstance(place, DiskFolder):
        if place.path.is_dir() and not any(place.path.iterdir()):
            return None
    elif place.read(BEGUN_FILE) == build.encode():
        return None
    try:
        fields: dict[str, Any] = json.loads(place.read(REPORT_FILE) or b"")
        same = fields["build"] == build
        told = fields["skipped"], fields["notes"], fields["examples"], fields["num_files"]
        template = fields.get("template", "")
    except (OSError, ValueError, KeyError, TypeError):
        same = False
    folders = [WHOLE] if options.validation_fraction == 0.0 else ["train", "validation"]
    prefixes = ["" if name == WHOLE else f"{name}/" for name in folders]
    is_whole = same and all(place.read(f"{prefix}{MANIFEST_FILE}") is not None for prefix in prefixes)
    if not is_whole or not _made_of(place.read(f"{prefixes[0]}{SOURCES_FILE}"), digests):
        raise UserError(f"output {out} exists already and holds something else; remove it or choose another folder")
    datasets = {}
    for name in folders:
        at = out if name == WHOLE else below(str(out), name) if is_remote(out) else Path(out, name)
        with tempfile.TemporaryDirectory() as cache:
            dataset = TokenDataset.open(at, cache=Path(cache))
            dataset.verify()
        datasets[name] = dataset.manifest
    return BuildReport(out, datasets, *told, 0.0, 0, template, was_there=True)


def _made_of(listed: bytes | None, digests: Iterable[str]) -> bool:
    """Whether the files have the digests of a sources.jsonl: names and sizes may be the same after an edit."""
    try:
        there = [json.loads(line)["sha256"] for line in (listed or b"").decode().splitlines()]
    except (ValueError, KeyError, TypeError):
        return False
    return all(digest == now for digest, now in zip_longest(there, digests))  # one by one, until one differs
