"""A build that is killed at any moment, then started again, gives the bytes of one that was not."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import looplm
from looplm.data.dataset import TokenDataset
from looplm.data.tokenizer import Tokenizer
from looplm.errors import UserError

# Small blocks and groups, so that there are many of them in a second; nothing else differs from the command.
PROGRAM = """
import os
import sys
import time
from looplm.cli import main
from looplm.data.build import plan
from looplm.data.build.encode import Encoder
from looplm.data.formats import jsonl, read

def slowly(*arguments, write=Encoder.write):
    time.sleep(float(os.environ["SECONDS_A_UNIT"]))
    return write(*arguments)

if __name__ == "__main__":
    if "SECONDS_A_UNIT" in os.environ:
        Encoder.write = slowly
    plan._GROUP_BYTES, read._BLOCK_BYTES, jsonl.PIECE_BYTES = 60_000, 20_000, 20_000
    sys.argv[0] = "looplm"
    main()
"""


@pytest.fixture
def command(tokenizer: Tokenizer, emails: Path, tmp_path: Path):
    """Starts a build of lines and source files into a folder of the given name."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    lines = tmp_path / "lines"
    lines.mkdir()
    for number, file in enumerate(sorted(Path(json.__file__).parents[1].glob("*.py"))[:24]):
        records = [{"text": part} for part in file.read_text("utf-8").split("\n\n")]
        text = "".join(json.dumps(record) + "\n" for record in [*records, {"body": 1}])
        (lines / f"{number // 8}.jsonl").open("a").write(text)

    def start(name: str, workers: int = 1, *more: str) -> subprocess.Popen:
        options = ["--validation-fraction", "0.2", "--shuffle", "7", "--dedup", "--workers", str(workers), *more]
        inputs = ["--input", str(lines), "--input", str(emails)]
        words = ["data", "build", *inputs, "--tokenizer", str(tokenizer.path), "--out", str(tmp_path / name), *options]
        environment = os.environ | {"PYTHONPATH": str(Path(looplm.__file__).parents[1])}
        return subprocess.Popen([sys.executable, str(program), *words], env=environment, stdout=subprocess.PIPE)

    return start


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run(process: subprocess.Popen, work: Path, stop_after_s: float | None = None) -> tuple[int, float]:
    """Waits for a build, or kills it so long after its folder came up; returns its code and the seconds since then."""
    while not work.exists() and process.poll() is None:
        time.sleep(0.002)
    started = time.monotonic()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(stop_after_s)
    seconds = time.monotonic() - started
    if process.poll() is None:
        process.send_signal(signal.SIGKILL)
    return process.wait(), seconds


def check_what_is_there(folders: list[Path]) -> None:
    """Whatever is taken for a dataset is whole."""
    for folder in folders:
        try:
            dataset = TokenDataset.open(folder)
        except UserError:
            continue
        dataset.verify()


CASES = [(3, 1), pytest.param(10, 1, marks=pytest.mark.slow), pytest.param(10, 2, marks=pytest.mark.slow)]


@pytest.mark.parametrize(("num_kills", "workers"), CASES)
def test_killed_and_started_again(command, tmp_path: Path, num_kills: int, workers: int) -> None:
    code, seconds = run(command("whole", workers), tmp_path / ".whole.partial")
    assert code == 0
    rng, out, work = random.Random(num_kills), tmp_path / "killed", tmp_path / ".killed.partial"
    killed_with = []
    for _ in range(4 * num_kills):
        code, _ = run(command("killed", workers), work, rng.random() * seconds)
        check_what_is_there([folder / part for folder in (out, work / "dataset") for part in ("train", "validation")])
        if code == -signal.SIGKILL:
            killed_with.append((len(list(work.glob("units/*/*.unit"))), (work / "dataset").exists()))
        else:
            assert code == 0
            assert contents(out) == contents(tmp_path / "whole")
            shutil.rmtree(out)  # it came through: once more from nothing
        if len(killed_with) == num_kills:
            break
    assert len(killed_with) == num_kills
    assert any(units for units, _ in killed_with)
    assert run(command("killed", workers), work)[0] == 0
    assert contents(out) == contents(tmp_path / "whole")
    report = json.loads((out / "build_report.json").read_text())
    assert report["skipped"]["no_field"] == 24
    assert not work.exists()


def test_workers_do_not_outlive_a_killed_build(command, tmp_path: Path) -> None:
    process = command("killed", 2)
    while not list(tmp_path.glob(".killed.partial/units/*/*.unit")):
        assert process.poll() is None
        time.sleep(0.02)
    children = [int(child) for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    assert len(children) >= 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{child}").exists() and "Z" not in state(child) for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def state(process: int) -> str:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return "Z"


@pytest.mark.slow
def test_seven_parts_one_killed_twice_two_by_ray(command, tmp_path: Path) -> None:
    """As a cluster would do it: every part is a process, or a task of Ray's, that knows nothing of the others."""
    pytest.importorskip("ray", reason="pip install 'looplm[ray]'")
    assert command("whole").wait() == 0
    units = [0]
    while len(units) < 3:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SECONDS_A_UNIT", "0.1")
            process = command("parts", 1, "--part", "2/7")
        while (found := len(list(tmp_path.glob("parts/part-00002-*/*/*.unit")))) == units[-1]:
            assert process.poll() is None
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        units.append(found)
        assert not (tmp_path / "parts/part-00002-of-00007/part.json").exists()
    assert [command("parts", 1, "--part", part).wait() for part in ("1/7", "2-3/7", "6-7/7")] == [0, 0, 0]
    assert command("parts", 1, "--part", "4-5/7", "--engine", "ray").wait() == 0
    words = ["data", "join", str(tmp_path / "parts"), "--out", str(tmp_path / "joined")]
    subprocess.run([sys.executable, "-m", "looplm", *words], check=True)
    assert contents(tmp_path / "joined") == contents(tmp_path / "whole")
