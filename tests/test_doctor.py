"""The doctor: what is fine passes with exit code 0, what is wrong is named with exit code 2."""

from collections.abc import Callable
from pathlib import Path

import pytest

from looplm.config.schema import Mesh
from looplm.doctor import examine as doctor
from looplm.doctor.known_bad import KNOWN_BAD, version_problems
from looplm.errors import UserError


def test_a_fit_machine(tmp_path: Path) -> None:
    health = doctor.examine(Mesh(data=2, fsdp=4), tmp_path, mib=1)
    assert health.problems == []
    assert {(link.axis, link.size, link.collective) for link in health.links} == {
        (axis, size, name) for axis, size in (("data", 2), ("fsdp", 4)) for name in ("all-reduce", "all-gather")
    }
    assert "MiB/s" in health.storage[str(tmp_path)]
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_sum_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    function, expected = doctor.COLLECTIVES["all-reduce"]
    broken = {"all-reduce": (lambda x, axis: 2 * function(x, axis), expected)}
    monkeypatch.setattr(doctor, "COLLECTIVES", broken)
    (problem,) = doctor.examine(Mesh(fsdp=8), tmp_path, mib=1).problems
    assert problem.startswith("all-reduce over mesh.fsdp=8 gives 72.0 instead of 36.0")


@pytest.mark.parametrize(
    ("versions", "platform", "named"),
    [
        ({"libtpu": "0.0.48"}, "tpu", "issues/49143"),
        ({"libtpu": "0.0.42.1"}, "tpu", "issues/39025"),
        ({"libtpu": "0.0.49"}, "tpu", None),
        ({"libtpu": "0.0.48"}, "cpu", None),
    ],
)
def test_known_bad_versions(versions: dict[str, str], platform: str, named: str | None) -> None:
    problems = version_problems(versions, platform)
    assert [named in problem for problem in problems] == ([True] if named else [])  # type: ignore[operator]


def test_every_known_bad_version_has_a_source() -> None:
    assert all(bad.source.startswith("github.com/") and bad.remedy for bad in KNOWN_BAD)


def test_a_wrong_mesh_is_refused() -> None:
    assert doctor.parse_mesh("data=2,tensor=-1") == Mesh(data=2, tensor=-1)
    with pytest.raises(UserError, match="'pipe=2' is not axis=size; the axes are replica, data"):
        doctor.parse_mesh("pipe=2")


def test_the_command(command: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, stdout, stderr = command("doctor", "--folder", tmp_path / "file")
    assert code == 2
    assert stderr.startswith(f"looplm: {tmp_path / 'file'} cannot be written and read (")
    assert len(stderr.splitlines()) == 1
    assert "jax: " in stdout
