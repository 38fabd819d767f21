"""Put the parts of a build together: the bytes of the build on one machine.

What takes long was done in the parts. Their units are read where they are, in the order of the input; only for a
shuffle, which jumps between them, are those at an address copied beside the dataset first.
"""

import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from looplm.data.build.part import PART_FILE, TOKENIZER_FOLDER, Part, PartFile, listed_input
from looplm.data.build.report import BuildReport, Meter, Progress
from looplm.data.build.whole import Whole, there_already
from looplm.data.build.work import hidden_folder, locked
from looplm.data.place import DiskFolder, Place, check_writable, place_at
from looplm.data.remote import READ_TOGETHER, RemoteFolder
from looplm.data.tokenizer import Tokenizer
from looplm.errors import UserError


def join_parts(
    where: str, out: Path | str, *, skip_damaged: bool = False, progress: Callable[[Progress], None] | None = None
) -> BuildReport:
    """Make the dataset `out` of the parts in the folder `where`; both are paths or addresses.

    `skip_damaged` takes the other records where most were left out; where a part was built so, it holds for the whole.
    When the same dataset is there already, nothing is done. Raises UserError unless these are all parts of one build.
    """
    started, work, place = time.monotonic(), hidden_folder(out), place_at(where)
    check_writable(place_at(out))
    with closing(place):
        whole = _whole(place, skip_damaged)
        digests = [source.sha256 for source in whole.sources]
        build = whole.options.build(whole.sources)
        if (report := there_already(out, build, whole.options, digests)) is not None:
            return report
        total_bytes = sum(source.size for source in whole.sources)
        meter = Meter(len(digests), total_bytes, started, progress)
        num_tokens = sum(unit.num_tokens for done in whole.done for unit in done.units)
        meter.encoded(total_bytes, len(digests), num_tokens, is_new=False)
        with locked(work, out):
            try:
                if isinstance(place, RemoteFolder) and whole.options.shuffle_seed is not None:
                    whole = replace(whole, place=_copied(whole, place, work / "units"))
                return whole.write(out, work, meter, 1, started)
            finally:
                whole.place.close()
                shutil.rmtree(work, ignore_errors=True)


def _whole(place: Place, skip_damaged: bool) -> Whole:
    """Read what the parts say, and check that they are those of one build, and all of it."""
    names = place.names()
    files = _part_files(place, names)
    first = files[0]
    for file in files[1:]:
        if difference := file.difference(first):
            raise UserError(
                f"part {file.part} in {place.location} is of another build than part {first.part}: its {difference}; "
                "remove the one that is wrong and build it like the others"
            )
    done = [group for file in files for group in file.done]
    if first.files != listed_input([source for group in done for source in group.sources]):
        raise UserError(f"the parts in {place.location} are not all of their input; remove them and build them again")
    lacking = [
        unit for group in done for number in range(len(group.units)) if (unit := group.unit(number)) not in names
    ]
    if lacking:
        raise UserError(f"{place.location}/{lacking[0]} has gone; remove {lacking[0].split('/')[0]} and build it again")
    takes_damaged = skip_damaged or any(file.options.reading.skip_damaged for file in files)
    reading = replace(first.options.reading, skip_damaged=takes_damaged)
    options = replace(first.options, reading=reading)
    tokenizer = _tokenizer(place, first, names)
    return Whole(place, done, options, tokenizer, first.template, first.besides, [place.location])


def _part_files(place: Place, names: set[str]) -> list[PartFile]:
    there = sorted({part for name in names if (part := Part.of_file(name)) is not None})
    if not there:
        raise UserError(f"{place.location} holds no part; make them with `looplm data build ... --part I/N`")
    count = there[0].num_parts
    if others := [part for part in there if part.num_parts != count]:
        raise UserError(
            f"{place.location} holds part {there[0]} and part {others[0]}: parts of two builds; move those of one away"
        )
    unfinished = [part for part in there if f"{part.folder}/{PART_FILE}" not in names]
    if unfinished:
        raise UserError(
            f"{_named(unfinished)} in {place.location} {_is(unfinished)} not finished; wait, or run its command again: "
            "it goes on"
        )
    if missing := [part for number in range(1, count + 1) if (part := Part(number, count)) not in there]:
        raise UserError(
            f"{_named(missing)} {_is(missing)} missing in {place.location}; build it with the command of the others "
            f"and --part {missing[0]}"
        )
    files = [file for part in there if (file := PartFile.read(place, part)) is not None]
    for part, file in zip(there, files, strict=True):
        if file.part != part:
            raise UserError(f"{place.location}/{part.folder} holds part {file.part}; remove it or name it rightly")
    return files


def _named(parts: list[Part]) -> str:
    others = f" and {len(parts) - 5} others" if len(parts) > 5 else ""
    return f"part{'s' * (len(parts) > 1)} {', '.join(map(str, parts[:5]))}{others}"


def _is(parts: list[Part]) -> str:
    return "is" if len(parts) == 1 else "are"


def _tokenizer(place: Place, first: PartFile, names: set[str]) -> Tokenizer | None:
    if first.options.tokenizer is None:
        return None
    folder = f"{first.part.folder}/{TOKENIZER_FOLDER}"
    with tempfile.TemporaryDirectory() as copy:
        for name in names:
            if name.startswith(f"{folder}/"):
                Path(copy, name.rpartition("/")[2]).write_bytes(place.read(name) or b"")
        tokenizer = Tokenizer.find(Path(copy))
    if tokenizer is None or tokenizer.fingerprint != first.options.tokenizer:
        raise UserError(
            f"{place.location}/{folder} is not the tokenizer of the parts; remove {first.part.folder} and build it "
            "again"
        )
    return tokenizer


def _copied(whole: Whole, place: RemoteFolder, folder: Path) -> DiskFolder:
    copy = DiskFolder(folder)
    names = [group.unit(number) for group in whole.done for number in range(len(group.units))]
    for begin in range(0, len(names), READ_TOGETHER):
        some = names[begin : begin + READ_TOGETHER]
        for name, data in zip(some, place.read_ranges([(name, 0, None) for name in some]), strict=True):
            copy.write(name, data or b"")
    return copy
