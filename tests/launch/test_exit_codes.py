"""Which ends are started again: one list, and what the launchers make of it."""

import re
from pathlib import Path

import pytest
import typer

from looplm.cli import launch
from looplm.launch.exit_codes import FINAL, MAX_CRASHES, starts_again

LAUNCH = Path(__file__).parents[2] / "launch"
TABLE = (LAUNCH.parent / "docs" / "reliability.md").read_text()


@pytest.mark.parametrize(
    ("code", "starts", "again"),
    [(0, 0, False), (2, 0, False), (76, 0, False), (130, 0, False), (127, 0, False), (1, 0, True), (137, 19, True),
     (137, MAX_CRASHES, False), (75, 0, True), (75, 1000, True)],
)  # fmt: skip
def test_what_is_started_again(code: int, starts: int, again: bool) -> None:
    assert starts_again(code, starts) == again
    with pytest.raises(typer.Exit) as ended:
        launch.again(code, starts)
    assert ended.value.exit_code == (0 if again else 1)


def test_the_documentation_says_the_same() -> None:
    rows = re.findall(r"^\| (\d+) \| .* \| (no|yes|after .*?) \|$", TABLE, re.MULTILINE)
    assert {int(code): answer == "yes" for code, answer in rows} == {
        code: starts_again(code) for code in (0, 1, 2, 75, 76)
    }


def test_templates_hold_no_list_of_their_own() -> None:
    scripts = [path for path in LAUNCH.rglob("*") if path.suffix in (".sbatch", ".sh")]
    assert len(scripts) > 3
    for path in scripts:
        code = re.sub(r"(^|\s)#.*", "", path.read_text())
        assert not re.search(r"\b(75|76)\b", code), path
    assert {0, 2, 76, 126, 127, 130} == FINAL
