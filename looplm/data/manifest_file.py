"""Reads the file that makes a folder a dataset, or says why there is none."""

import difflib
from pathlib import Path

from looplm.config.schema import TASK_KINDS
from looplm.data.manifest import MANIFEST_FILE, REBUILD
from looplm.data.remote import RemoteFolder
from looplm.errors import UserError


def read_remote_manifest(remote: RemoteFolder) -> bytes:
    """Return the bytes of the manifest of a folder at an address. Raises UserError if there is none."""
    data = remote.read(MANIFEST_FILE)
    if data is None:
        raise UserError(f"{remote.location} has no {MANIFEST_FILE}: it is not a dataset; copy one there")
    return data


def read_manifest(path: Path) -> bytes:
    """Return the bytes of the manifest of a folder on a disk. Raises UserError if there is none, saying what is there
    instead: a build that is not finished, a folder of datasets, a task."""
    if (work := path.absolute().parent / f".{path.name}.partial").is_dir() and not path.is_dir():
        raise UserError(
            f"dataset {path} is not finished: {work.name} is what there is of it; wait, or run the same `looplm data "
            "build` again, which goes on from there"
        )
    if not path.is_dir():
        close = difflib.get_close_matches(str(path), TASK_KINDS, n=1, cutoff=0.75)
        task = f", or did you mean the task {close[0]}?" if close else ""
        raise UserError(f"dataset {path} is not a folder; make one with `looplm data build`{task}")
    try:
        return (path / MANIFEST_FILE).read_bytes()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UserError(f"cannot read {path / MANIFEST_FILE}: {error.strerror}; mend its permissions") from None
    parts = sorted(manifest.parent.name for manifest in path.glob(f"*/{MANIFEST_FILE}"))
    if parts:
        raise UserError(f"{path} is not a dataset but holds {' and '.join(parts)}; name {path / parts[0]}")
    raise UserError(f"{path} has no {MANIFEST_FILE}: it is not a dataset, or building it did not finish; {REBUILD}")
