"""Eight pretended devices, a tiny dataset, a tiny run, and the command line: called here, or as a process."""

import gc
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from packaging.version import Version

# Before anything imports jax.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # Many tests train the same tiny model: workers of pytest, which inherit it, and processes share what was compiled.
    COMPILED = TemporaryDirectory(prefix="looplm-compiled-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILED.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.05"
# Tiny programs take longer to compile than to run: this takes two thirds of the suite's time away. Only how kernels are
# made is affected; collectives, memory and rematerialisation are decided before it. An unknown flag ends the process.
os.environ["XLA_FLAGS"] = " ".join(
    (
        "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
        "--xla_cpu_parallel_codegen_split_count=1",
        "--xla_cpu_use_fusion_emitters=false" if Version(version("jaxlib")) < Version("0.11") else "",
        "--xla_force_host_platform_device_count=8",
        os.environ.get("XLA_FLAGS", ""),
    )
)

import pytest
from rich.console import Console

import looplm
from looplm.cli import main
from looplm.config.load import override, to_json
from looplm.config.schema import (
    Checkpoint,
    Data,
    Eval,
    ExitGate,
    ExpectedCrossEntropy,
    Log,
    Loop,
    Model,
    Optim,
    Run,
    Schedule,
)
from looplm.data.formats.read import read_documents
from looplm.data.tokenizer import train_tokenizer
from looplm.data.writer import build_dataset

# Programs that are traced stay alive: looking through all of them again and again takes a tenth of the suite's time.
gc.set_threshold(100_000, 20, 100)

VOCAB_SIZE = 384
"""Bytes, the characters of the texts, and a few pieces more."""
CONFIG_FILE = """\
from pathlib import Path

from looplm.config.load import from_json


def config():
    return from_json(Path(__file__).with_suffix(".json"))
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, so that none is left alone at the end."""
    items.sort(key=lambda item: "system" not in item.path.parts)


@pytest.fixture(scope="session")
def texts() -> list[Path]:
    """Folders with some 25 documents: sources of the standard library."""
    library = Path(json.__file__).parents[1]
    return [library / "json", library / "email"]


@pytest.fixture(scope="session")
def tiny_data(texts: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the token datasets `train` and `validation`."""
    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = train_tokenizer((str(document.content) for document in read_documents(texts)), VOCAB_SIZE, folder)
    build_dataset(texts, tokenizer, folder / "data", validation_fraction=0.2, num_workers=1)
    return folder / "data"


@pytest.fixture(scope="session")
def tiny_run(tiny_data: Path) -> Callable[..., Run]:
    """Makes the smallest run worth the name, with leaves replaced: `tiny_run(**{"loop.num_loops": 2})`."""
    run = Run(
        num_steps=3,
        model=Model(vocab_size=VOCAB_SIZE, dim=16, num_heads=2, hidden_dim=32, block_layers=1, exit_gate=ExitGate()),
        loop=Loop(num_loops=3),
        objective=ExpectedCrossEntropy(),
        optim=Optim(learning_rate=1e-2, schedule=Schedule(warmup_steps=2)),
        data=Data(
            train=str(tiny_data / "train"),
            validation=str(tiny_data / "validation"),
            sequence_length=16,
            batch_tokens=128,
        ),
        checkpoint=Checkpoint(every_steps=2),
        eval=Eval(max_batches=2),
        log=Log(tensorboard=False),
    )
    return lambda **overrides: override(run, overrides)


@pytest.fixture(scope="session")
def finished_run(tiny_run: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of `tiny_run()`, trained to its end. Read only."""
    from looplm.train.trainer import Trainer

    workdir = tmp_path_factory.mktemp("finished") / "run"
    Trainer(tiny_run(), workdir, Console(file=io.StringIO())).train()
    return workdir


@pytest.fixture(scope="session")
def write_config() -> Callable[[Path, Run], Path]:
    """Writes a config file that gives a run into a folder."""

    def write(folder: Path, run: Run) -> Path:
        path = folder / "config_file.py"
        path.write_text(CONFIG_FILE)
        path.with_suffix(".json").write_text(to_json(run))
        return path

    return write


@pytest.fixture
def config_file(write_config: Callable[[Path, Run], Path], tmp_path: Path) -> Callable[[Run], Path]:
    """Writes a config file that gives a run into the test's folder."""
    return partial(write_config, tmp_path)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Makes a folder on a disk of its own: `small_disk("8m")`. Once a test."""
    folder = tmp_path / "disk"

    def mount(size: str) -> Path:
        folder.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=False).returncode:
            pytest.skip("mounting needs root")
        return folder

    yield mount
    if folder.is_mount():
        subprocess.run(["umount", "--lazy", folder], check=True)  # a file may still be open


class Outcome(NamedTuple):
    """What a command line gave back."""

    code: int
    stdout: str
    stderr: str


@pytest.fixture(scope="session")
def command() -> Callable[..., Outcome]:
    """Runs a command line of `looplm` in this process, as its entry point does."""

    def run(*arguments: object) -> Outcome:
        stdout, stderr = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(stdout), redirect_stderr(stderr):
            patch.setattr(sys, "argv", ["looplm", *map(str, arguments)])
            with pytest.raises(SystemExit) as stop:
                main()
        return Outcome(int(stop.value.code or 0), stdout.getvalue(), stderr.getvalue())

    return run


@dataclass(frozen=True)
class Program:
    """`python -m looplm` as a process, with a number of pretended devices and a cache of compiled programs."""

    cache: Path

    def start(
        self, *arguments: object, devices: int = 1, entry: Sequence[str] = ("-m", "looplm")
    ) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *entry, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.cache,  # not the checkout: nothing may depend on the working directory
            env=os.environ
            | {
                "PYTHONPATH": str(Path(looplm.__file__).parents[1]),
                # Of a flag that is there twice the last counts.
                "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}",
                "JAX_COMPILATION_CACHE_DIR": str(self.cache),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            },
        )

    def run(self, *arguments: object, devices: int = 1) -> Outcome:
        process = self.start(*arguments, devices=devices)
        stdout, stderr = process.communicate()
        return Outcome(process.returncode, stdout, stderr)


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Program:
    return Program(tmp_path_factory.mktemp("compiled"))
