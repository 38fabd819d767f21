"""Damages the newest checkpoint of a run in many ways and counts what a resume notices.

    python tools/checkpoint_faults.py WORKDIR [--faults 2000] [--seed 0]

WORKDIR is a run directory with two checkpoints or more; a copy of them is damaged. Every fault is followed by a restore
of the whole state as a resume does it, which must fall back to the checkpoint before and say what is wrong with the
newest. `found`: it did. `file`: the message names the file. `leaf`: the message names an array, or says that none is
affected. A fault that would change nothing (a file put in place of an equal one) is drawn again.
"""

import json
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NamedTuple

import jax
import typer

from looplm.checkpoint.digest import Trees, compile_digests
from looplm.checkpoint.folder import steps
from looplm.checkpoint.reader import CheckpointReader
from looplm.checkpoint.seal import SEAL_FILE, list_files, read_seal, seal_bytes
from looplm.config.load import from_json
from looplm.sharding.mesh import build_mesh
from looplm.train.program import Program


class Target(NamedTuple):
    """What is damaged, and what it may be mixed up with."""

    newest: Path
    older: Path
    draw: random.Random

    def file(self, *, at_least: int = 1) -> Path:
        files = [self.newest / name for name in list_files(self.newest)]
        return self.draw.choice([file for file in files if file.stat().st_size >= at_least])


def flip_bit(target: Target) -> Path:
    return flip(target.file(), target.draw)


def flip_bit_of_small_file(target: Target) -> Path:
    """The random choice above is by file; here those that are not arrays."""
    files = [path for path in target.newest.rglob("*") if path.is_file() and path.parent.name != "d"]
    return flip(target.draw.choice([path for path in files if path.stat().st_size]), target.draw)


def flip(file: Path, draw: random.Random) -> Path:
    content = bytearray(file.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    file.write_bytes(content)
    return file


def truncate(target: Target) -> Path:
    file = target.file()
    file.write_bytes(file.read_bytes()[: target.draw.randrange(file.stat().st_size)])
    return file


def empty(target: Target) -> Path:
    file = target.file()
    file.write_bytes(b"")
    return file


def append(target: Target) -> Path:
    file = target.file(at_least=0)
    file.write_bytes(file.read_bytes() + target.draw.randbytes(target.draw.randint(1, 100)))
    return file


def zero_block(target: Target) -> Path:
    file = target.file(at_least=8)
    content = bytearray(file.read_bytes())
    start = target.draw.randrange(len(content))
    stop = min(len(content), start + target.draw.randint(1, 4096))
    content[start:stop] = bytes(stop - start)
    file.write_bytes(content)
    return file


def delete(target: Target) -> Path:
    file = target.file(at_least=0)
    file.unlink()
    return file


def delete_folder(target: Target) -> Path:
    folder = target.draw.choice([path for path in target.newest.rglob("*") if path.is_dir()])
    shutil.rmtree(folder)
    return folder


def swap(target: Target) -> Path:
    """Two files of the checkpoint change places."""
    one, other = target.file(at_least=0), target.file(at_least=0)
    contents = one.read_bytes(), other.read_bytes()
    other.write_bytes(contents[0])
    one.write_bytes(contents[1])
    # The seal is read first, then files by name.
    return min((one, other), key=lambda path: (path.name != SEAL_FILE, path.as_posix()))


def stale_file(target: Target) -> Path:
    """A file of the checkpoint before takes the place of one of the same kind."""
    file = target.file(at_least=0)
    kind = file.relative_to(target.newest).parent
    others = [path for path in (target.older / kind).iterdir() if path.is_file()]
    same = [path for path in others if path.name == file.name]
    file.write_bytes(target.draw.choice(same or others).read_bytes())
    return file


def stale_item(target: Target) -> Path:
    """All of params, or of opt_state, is that of the checkpoint before."""
    item = target.draw.choice([path for path in target.newest.iterdir() if path.is_dir()])
    shutil.rmtree(item)
    shutil.copytree(target.older / item.name, item)
    return item


def stale_checkpoint(target: Target) -> Path:
    """The checkpoint before under the newest one's name."""
    shutil.rmtree(target.newest)
    shutil.copytree(target.older, target.newest)
    return target.newest / SEAL_FILE


def rename_file(target: Target) -> Path:
    file = target.file(at_least=0)
    file.rename(file.with_name(file.name + "x"))
    return file


def rename_leaf(target: Target) -> Path:
    """In the seal, or in Orbax's own list."""
    file = target.draw.choice([target.newest / SEAL_FILE, *target.newest.rglob("_METADATA")])
    text = file.read_text()
    seal = read_seal(target.newest)
    name = target.draw.choice([name for leaves in seal.arrays.values() for name in leaves]).rpartition(".")[2]
    file.write_text(text.replace(name, name[::-1] + "x"))
    return file


def empty_marker(target: Target) -> Path:
    names = ("commit_success.txt", "_CHECKPOINT_METADATA", "manifest.ocdbt", SEAL_FILE)
    file = target.draw.choice([path for path in target.newest.rglob("*") if path.name in names])
    if target.draw.random() < 0.5:
        file.unlink()
    else:
        file.write_bytes(b"")
    return file


def link(target: Target) -> Path:
    """A file is moved away, and a link to it put in its place."""
    file = target.file(at_least=0)
    elsewhere = target.newest.parent / "elsewhere"
    shutil.rmtree(elsewhere, ignore_errors=True)
    elsewhere.mkdir()
    file.symlink_to(shutil.move(file, elsewhere / "file"))
    return file


def other_digest(target: Target) -> Path:
    """As if an array had been damaged between memory and disk: files are as sealed, one array is not."""
    body = json.loads((target.newest / SEAL_FILE).read_bytes())["seal"]
    leaves = body["arrays"][target.draw.choice(list(body["arrays"]))]
    leaf = leaves[target.draw.choice(list(leaves))]
    leaf["digest"] = f"{int(leaf['digest'], 16) ^ (1 << target.draw.randrange(64)):016x}"
    (target.newest / SEAL_FILE).write_bytes(seal_bytes(body))
    return target.newest / SEAL_FILE


FAULTS: dict[Callable[[Target], Path], int] = {
    flip_bit: 20, flip_bit_of_small_file: 20, truncate: 8, empty: 4, append: 4, zero_block: 4, delete: 6,
    delete_folder: 3, swap: 6, stale_file: 8, stale_item: 2, stale_checkpoint: 1, rename_file: 4, rename_leaf: 4,
    empty_marker: 6, link: 2, other_digest: 6,
}  # fmt: skip
"""With their shares."""


class Outcome(NamedTuple):
    fault: str
    found: bool
    names_file: bool
    names_leaf: bool
    message: str


class Bench:
    """Copies of the two newest checkpoints of a run, and the state that they are restored onto."""

    def __init__(self, folder: Path, abstract: Trees, scratch: Path):
        self.abstract, self.digest = abstract, compile_digests(abstract)
        older, newest = steps(folder)[-2:]
        self.whole = {step: folder / str(step) for step in (older, newest)}
        self.scratch, self.older, self.newest = scratch, older, newest
        self.files = {str(path.relative_to(folder / str(newest))) for path in (folder / str(newest)).rglob("*")}

    def try_one(self, fault: Callable[[Target], Path], draw: random.Random) -> Outcome:
        while True:
            for step, source in self.whole.items():
                shutil.rmtree(self.scratch / str(step), ignore_errors=True)
                shutil.copytree(source, self.scratch / str(step))
            newest = self.scratch / str(self.newest)
            damaged = fault(Target(newest, self.scratch / str(self.older), draw))
            if fault is link or snapshot(newest) != snapshot(self.whole[self.newest]):
                break
        lines: list[str] = []
        restored = CheckpointReader(self.scratch, lines.append).restore(self.abstract, digest=self.digest)
        message = " ".join(lines)
        name = str(damaged.relative_to(newest))
        return Outcome(
            fault.__name__,
            found=restored.seal.step == self.older and restored.passed_over == [self.newest],
            names_file=any(part in message for part in self.files if part == name or part.startswith(f"{name}/")),
            names_leaf=any(words in message for words in ("params ", "opt_state ", "affects no array")),
            message=message,
        )


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def draw_faults(count: int, draw: random.Random) -> list[Callable[[Target], Path]]:
    return draw.choices(list(FAULTS), weights=list(FAULTS.values()), k=count)


def main(
    workdir: Annotated[Path, typer.Argument(help="A run directory with two checkpoints or more.")],
    faults: int = 2000,
    seed: int = 0,
) -> None:
    run = from_json(workdir / "config.json")
    state = Program(run, build_mesh(run.mesh, jax.devices()[:1])).abstract_state()
    abstract = {"params": state.params, "opt_state": state.opt_state}
    draw = random.Random(seed)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(workdir / "checkpoints", abstract, Path(scratch))
        outcomes = [bench.try_one(fault, draw) for fault in draw_faults(faults, draw)]
    print(f"{faults} faults, seed {seed}, {time.monotonic() - started:.0f} s\n")
    print("| fault | injected | found | file named | leaf named |\n|---|---|---|---|---|")
    counts = Counter(outcome.fault for outcome in outcomes)
    for name in [*sorted(counts), "all"]:
        mine = [outcome for outcome in outcomes if name in {outcome.fault, "all"}]
        row = (len(mine), *(sum(o[column] for o in mine) for column in (1, 2, 3)))
        print(f"| {name.replace('_', ' ')} | {' | '.join(map(str, row))} |")
    for outcome in outcomes:
        if not outcome.found:
            raise SystemExit(f"not found: {outcome}")


if __name__ == "__main__":
    typer.run(main)
