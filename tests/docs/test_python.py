"""Python that the pages show: all of it is Python and imports what is there; what the README shows is run."""

import ast
import re
from pathlib import Path

import pytest

from tools.page_commands import ROOT, pages

BLOCKS = [
    pytest.param(code, id=f"{page.name}: {code.splitlines()[0][:60]}")
    for page in pages()
    for code in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)
]


@pytest.mark.parametrize("code", BLOCKS)
def test_what_a_page_imports_is_there(code: str) -> None:
    imports = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Import | ast.ImportFrom)]
    exec(compile(ast.Module(imports, []), "page", "exec"), {})


def test_the_api_of_the_readme(finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    names: dict = {}
    exec(code.replace("runs/demo/run", str(finished_run)), names)
    assert names["out"].logits(8).shape[:2] == names["tokens_BS"].shape
    assert capsys.readouterr().out.startswith("[")
