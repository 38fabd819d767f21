"""Build a token dataset from files: all of it or nothing, and after a kill from where it was.

Everything is made in a hidden folder beside the target, `.NAME.partial`: units first (`build.encode`), then the dataset
(`build.whole`), which is synced and renamed into place. The bytes depend on the input, the tokenizer and the options,
not on the machine, the number of workers or interruptions. In parts on several machines: `build.part`, `build.join`.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from looplm.data.build.encode import encode_groups
from looplm.data.build.report import BuildReport, Meter, Progress
from looplm.data.build.request import Request, make_request
from looplm.data.build.whole import Whole, there_already
from looplm.data.build.work import chosen_workers, hidden_folder, locked
from looplm.data.formats.document import MostlyLeftOut
from looplm.data.formats.stream import FileStream
from looplm.data.place import DiskFolder
from looplm.errors import UserError


def build_dataset(
    inputs: Sequence[Path],
    tokenizer_file: Path | None,
    out: Path,
    *,
    num_workers: int | None = None,
    progress: Callable[[Progress], None] | None = None,
    **options: Any,
) -> BuildReport:
    """Turn the files of `inputs` into the dataset folder `out`.

    Args:
        num_workers: processes; by default one for every core and some megabytes of input.
        options: those of `make_request`, which also explains them.

    When the same dataset is there already, nothing is done. Raises UserError for a wrong request or damaged input.
    """
    hidden_folder(Path(out))
    chosen_workers(num_workers, 0)
    return build(make_request(inputs, tokenizer_file, **options), Path(out), num_workers, progress)


def build(
    request: Request, out: Path, num_workers: int | None = None, progress: Callable[[Progress], None] | None = None
) -> BuildReport:
    """Make the dataset that is asked for; see `build_dataset`."""
    started, work = time.monotonic(), hidden_folder(out)
    total_bytes = sum(file.size for file in request.files)
    num_workers = chosen_workers(num_workers, total_bytes)
    options, encoder = request.options, request.encoder
    digests = (FileStream(file).finish() for file in request.files)
    if (report := there_already(out, options.build(request.files), options, digests)) is not None:
        shutil.rmtree(work, ignore_errors=True)
        return report

    groups = [group.below("units") for group in request.groups]
    meter = Meter(len(request.files), total_bytes, started, progress)
    with locked(work, out), closing(DiskFolder(work)) as place:
        done = encode_groups(place, groups, encoder, num_workers, meter.encoded)
        whole = Whole(place, done, options, request.tokenizer, request.template, request.besides, request.inputs)
        try:
            report = whole.write(out, work, meter, num_workers, started)
        except MostlyLeftOut:
            raise  # the units are of use for the same command with --skip-damaged
        except UserError:
            shutil.rmtree(work, ignore_errors=True)  # it was all read, and the answer is final
            raise
        shutil.rmtree(work, ignore_errors=True)
    return report
