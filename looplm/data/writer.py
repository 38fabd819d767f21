"""Build a token dataset from files: all of it or nothing, and after a kill from where it was.

Everything is made in a hidden folder beside the target, `.NAME.partial`: units first (`build.encode`), then the dataset
(`build.assemble`), which is synced and renamed into place. The bytes depend on the input, the tokenizer and the
options, not on the machine, the number of workers or interruptions.
"""

import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from looplm.data.account import Account
from looplm.data.build.assemble import Documents, write_documents
from looplm.data.build.encode import Encoder, encode_groups, reader_of
from looplm.data.build.plan import Done, Group, plan
from looplm.data.build.report import REPORT_FILE, WHOLE, BuildReport, Meter, Progress
from looplm.data.build.unit import read_info
from looplm.data.dataset import TokenDataset
from looplm.data.folder import make_folder, sync_folder, write_synced
from looplm.data.formats.document import MostlyLeftOut, Reading, check_most_are_taken, no_documents
from looplm.data.formats.read import PLAIN
from looplm.data.formats.stream import FileStream
from looplm.data.formats.template import MESSAGE_FIELDS, PAIR_FIELDS, check_template, chosen_template
from looplm.data.formats.token_file import separator_begins
from looplm.data.manifest import MANIFEST_FILE, SOURCES_FILE, Manifest
from looplm.data.shard import FolderWriter, token_dtype
from looplm.data.source import SourceFile, find_files
from looplm.data.tokenizer import Tokenizer
from looplm.errors import UserError

RULES = 1
"""By which a dataset is made of documents: a change of its bytes needs another number, and datasets of before are then
other builds; the mending of documents that were wrong does not. How the work is cut into units is no part of it
(`build.plan.FORMAT`)."""
_BYTES_A_WORKER = 8 << 20
"""Below this much input a process is not worth its start."""


@dataclass(frozen=True, slots=True)
class _Options:
    """What the dataset depends on beside its input, as it is in the report."""

    reading: Reading
    tokenizer: str | None
    vocab_size: int | None
    validation_fraction: float
    shuffle_seed: int | None
    dedup: bool

    def listed(self) -> dict[str, Any]:
        """Return the fields as they name a build."""
        return {**asdict(self), "reading": self.reading.listed()}


def build_dataset(
    inputs: Sequence[Path],
    tokenizer_file: Path | None,
    out: Path,
    *,
    reading: Reading = PLAIN,
    bos: str | None = None,
    eos: str | None = None,
    vocab_size: int | None = None,
    validation_fraction: float = 0.0,
    shuffle_seed: int | None = None,
    dedup: bool = False,
    num_workers: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> BuildReport:
    """Turn the files of `inputs` into the dataset folder `out`.

    Args:
        tokenizer_file: None if all files are ready-made tokens; then `vocab_size` is what they are below, by default
            the largest and one more.
        bos, eos: names of the tokens that begin and end a document, where the tokenizer does not say it.
        validation_fraction: above 0, about that share of the documents is held out, and `out/train` and
            `out/validation` are two datasets. The side of a document depends on its text alone, so copies stay
            together and a rebuild with more files moves none.
        shuffle_seed: brings the documents into a random order; None keeps that of the input.
        dedup: leave out documents whose text was there before.
        num_workers: processes; by default one for every core and some megabytes of input.

    When the same dataset is there already, nothing is done. Raises UserError for a wrong request or damaged input.
    """
    started = time.monotonic()
    out = Path(out)
    if not 0.0 <= validation_fraction < 1.0:
        raise UserError(f"validation_fraction={validation_fraction} must be at least 0 and below 1; 0.05 is usual")
    if num_workers is not None and num_workers < 1:
        raise UserError(f"num_workers={num_workers} must be positive; leave it out to use every core")
    if vocab_size is not None and vocab_size < 1:
        raise UserError(f"vocab_size={vocab_size} must be positive; leave it out for the largest token and one more")
    if out.name in ("", ".."):
        raise UserError(f"--out {out} is no name of a new folder; give one")
    tokenizer = _load_tokenizer(tokenizer_file, bos, eos, vocab_size)
    reading, template = _completed(reading, tokenizer)
    besides, account = Account(), Account()
    files = find_files(inputs, besides)
    total_bytes = sum(file.size for file in files)
    num_workers = num_workers or max(1, min(_available_cores(), total_bytes // _BYTES_A_WORKER))
    fingerprint = tokenizer.fingerprint if tokenizer else None
    options = _Options(reading, fingerprint, vocab_size, validation_fraction, shuffle_seed, dedup)
    build = _build_digest(options, files)
    work = out.absolute().parent / f".{out.name}.partial"
    if (report := _there_already(out, build, options, files)) is not None:
        shutil.rmtree(work, ignore_errors=True)
        return report

    unit_dtype = token_dtype(tokenizer.vocab_size) if tokenizer else np.dtype("<u4")
    # Follows from the files, so it is no option.
    reading = dataclasses.replace(reading, separator_begins=separator_begins(files, reading))
    encoder = Encoder(
        tokenizer, reader_of(reading, tokenizer), unit_dtype, tokenizer.vocab_size if tokenizer else vocab_size
    )
    groups = plan(files, work / "units", reading, fingerprint, unit_dtype)
    meter = Meter(len(files), total_bytes, started, progress)
    with _locked(work, out):
        with closing(encode_groups(groups, encoder, num_workers)) as steps:
            for step in steps:
                meter.encoded(step.num_bytes, step.num_files, step.num_tokens, is_new=step.is_new)
        meter.writing()
        staging = work / "dataset"
        try:
            datasets = _write(groups, staging, options, encoder, account, inputs, meter)
        except MostlyLeftOut:
            raise  # the units are of use for the same command with --skip-damaged
        except UserError:
            shutil.rmtree(work, ignore_errors=True)  # it was all read, and the answer is final
            raise
        account += besides  # only now: what else lies there makes no other dataset
        skipped, notes = (dict(sorted(counts.items())) for counts in (account.skipped, account.notes))
        seconds = time.monotonic() - started
        report = BuildReport(
            out, datasets, skipped, notes, account.examples, len(files), seconds, num_workers, template=template
        )
        write_synced(staging / REPORT_FILE, report.dump(build, options.listed()))
        _move(staging, out)
        shutil.rmtree(work, ignore_errors=True)
    return report


def _write(
    groups: Sequence[Group],
    folder: Path,
    options: _Options,
    encoder: Encoder,
    account: Account,
    inputs: Sequence[Path],
    meter: Meter,
) -> dict[str, Manifest]:
    """Put the units together in `folder`; fill the account. Raises UserError when a part has no document."""
    done = [state for group in groups if (state := group.read_done())]
    documents = Documents(groups, done)
    max_token = _account_for(groups, done, account)
    if options.dedup and (num_copies := documents.keep_first_copies()):
        account.skipped["duplicate"] += num_copies
    sources = [source for state in done for source in state.sources]
    # Often a mistake of collecting; without `dedup` they are taken as they are.
    digests = [source.sha256 for source in sources if source.size]
    if not options.dedup and (num_copies := len(digests) - len(set(digests))):
        account.notes["identical_file"] += num_copies
    if documents.table.size == 0:
        raise no_documents(inputs, account)
    if not options.reading.skip_damaged:
        check_most_are_taken(inputs, account)
    shutil.rmtree(folder, ignore_errors=True)
    datasets, has_mask = {}, options.reading.examples is not None
    for part, table in documents.parts(options.validation_fraction).items():
        if table.size == 0:
            raise UserError(
                f"validation_fraction={options.validation_fraction} of {documents.table.size} whole documents leaves "
                f"the {part} part empty; change the fraction or give more documents"
            )
        (folder / part).mkdir(parents=True, exist_ok=True)
        vocab_size = options.vocab_size or max_token + 1
        with FolderWriter(
            folder / part,
            encoder.tokenizer,
            vocab_size=vocab_size,
            has_loss_mask=has_mask,
            template=options.reading.template,
        ) as writer:
            write_documents(
                writer,
                documents.units,
                table,
                unit_dtype=encoder.dtype,
                has_mask=has_mask,
                shuffle_seed=options.shuffle_seed,
                progress=meter.wrote,
            )
            datasets[part] = writer.finish(sources, account.skipped)
    return datasets


def _load_tokenizer(file: Path | None, bos: str | None, eos: str | None, vocab_size: int | None) -> Tokenizer | None:
    if file is None:
        return None
    tokenizer = Tokenizer.load(file, bos=bos, eos=eos)
    if tokenizer.bos_id < 0 or tokenizer.eos_id < 0:
        raise UserError(f"the tokenizer {tokenizer.path} lacks a bos or eos piece; documents begin and end with them")
    if vocab_size is not None and vocab_size != tokenizer.vocab_size:
        raise UserError(f"vocab_size={vocab_size} is not the {tokenizer.vocab_size} of {file}; leave it out")
    return tokenizer


def _completed(reading: Reading, tokenizer: Tokenizer | None) -> tuple[Reading, str]:
    """Fill in what the tokenizer knows, and check the template; also say which template it is."""
    if reading.separator_id is None and tokenizer is not None:
        reading = dataclasses.replace(reading, separator_id=tokenizer.eos_id)
    if reading.examples is None:
        if reading.template is not None:
            raise UserError("a template is for prompts and answers or chats; say which with --examples pairs or chat")
        return reading, ""
    if tokenizer is None:
        raise UserError("supervised examples are texts; give --tokenizer FILE")
    reading, told = chosen_template(reading, tokenizer.chat_templates)
    for template in filter(None, (reading.template, reading.tool_template)):
        fields = PAIR_FIELDS if reading.examples == "pairs" else MESSAGE_FIELDS
        check_template(template, fields, tokenizer.template_tokens)
    return reading, told


def _build_digest(options: _Options, files: Sequence[SourceFile]) -> str:
    listed = [(file.name, file.size) for file in files]
    return hashlib.sha256(json.dumps([RULES, options.listed(), listed]).encode()).hexdigest()


def _there_already(out: Path, build: str, options: _Options, files: Sequence[SourceFile]) -> BuildReport | None:
    """Return the report of the dataset at `out` if this very build made it, of the very bytes that the files hold.

    Raises UserError for anything else.
    """
    if not os.path.lexists(out) or (out.is_dir() and not any(out.iterdir())):
        return None
    try:
        fields: dict[str, Any] = json.loads((out / REPORT_FILE).read_bytes())
        same = fields["build"] == build
        told = fields["skipped"], fields["notes"], fields["examples"], fields["num_files"]
        template = fields.get("template", "")
    except (OSError, ValueError, KeyError, TypeError):
        same = False
    folders = [WHOLE] if options.validation_fraction == 0.0 else ["train", "validation"]
    is_whole = all((out / folder / MANIFEST_FILE).is_file() for folder in folders)
    if not same or not is_whole or not _made_of(out / folders[0] / SOURCES_FILE, files):
        raise UserError(f"output {out} exists already and holds something else; remove it or choose another folder")
    datasets = {}
    for part in folders:
        dataset = TokenDataset.open(out / part)
        dataset.verify()
        datasets[part] = dataset.manifest
    return BuildReport(out, datasets, *told, 0.0, 0, template, was_there=True)


def _made_of(listed: Path, files: Sequence[SourceFile]) -> bool:
    """Whether the files have the digests of a sources.jsonl: names and sizes may be the same after an edit."""
    try:
        digests = [json.loads(line)["sha256"] for line in listed.read_text().splitlines()]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return len(digests) == len(files) and all(
        digest == FileStream(file).finish() for digest, file in zip(digests, files, strict=True)
    )


def _account_for(groups: Sequence[Group], done: Sequence[Done], account: Account) -> int:
    """Sum up what was left out, in the order of the input; return the largest token."""
    max_token = 0
    for group, state in zip(groups, done, strict=True):
        account += state.account
        for number in range(state.num_units):
            info = read_info(group.unit(number))
            account += info.account
            max_token = max(max_token, info.max_token)
    return max_token


@contextmanager
def _locked(work: Path, out: Path) -> Iterator[None]:
    """Own the folder of a build; one that holds nothing finished is removed when the build is refused."""
    made = [folder for folder in (work, *work.parents) if not os.path.exists(folder)]
    is_new = work in made
    make_folder(work, out)
    lock = os.open(work / "lock", os.O_RDWR | os.O_CREAT)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"output {out} is being built by another process; wait for it, or stop it") from None
        try:
            yield
        except UserError:
            if is_new and not any(work.glob("units/*/*.unit")):
                shutil.rmtree(work, ignore_errors=True)
                with suppress(OSError):  # not empty: somebody else's
                    for folder in made[1:]:
                        folder.rmdir()
            raise
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise UserError(
                f"there is no space left for {work}, which needs twice the size of the tokens ({error.strerror}); "
                "make some, and run the same command again: it goes on"
            ) from None
    finally:
        os.close(lock)


def _move(staging: Path, out: Path) -> None:
    sync_folder(staging)
    try:
        staging.replace(out)
    except OSError as error:
        raise UserError(f"cannot make {out}: {error.strerror}; remove it or choose another folder") from error
    sync_folder(out.absolute().parent)


def _available_cores() -> int:
    # Containers and job schedulers give fewer cores than the machine has.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
