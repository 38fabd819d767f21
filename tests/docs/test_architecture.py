"""docs/architecture.md is true: its picture is that of the imports, its code runs, and what it names is there."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

from looplm.model.forward import Forward
from tools.draw_architecture import DOCUMENT, END, below, drawn, parts, redrawn, reduced
from tools.layers import PACKAGE

ROOT = PACKAGE.parent
TEXT = DOCUMENT.read_text()


def test_the_picture_is_that_of_the_imports() -> None:
    assert redrawn(TEXT) == TEXT, "run python -m tools.draw_architecture"


def test_the_picture_shows_a_new_import() -> None:
    graph = parts()
    assert "objective --> optim" not in drawn(graph)
    graph["looplm.objective"].add("looplm.optim")
    assert "objective --> optim" in drawn(graph)


def test_only_imports_that_follow_from_others_are_left_out() -> None:
    graph = parts()
    small = reduced(graph)
    assert {name: below(small, name) for name in graph} == {name: below(graph, name) for name in graph}
    for importer, targets in small.items():
        for imported in targets:
            without = {**small, importer: targets - {imported}}
            assert imported not in below(without, importer)


def test_a_circle_is_refused() -> None:
    with pytest.raises(ValueError, match="between a, b"):
        reduced({"a": {"b"}, "b": {"a"}, "c": {"a"}})


def test_what_stands_around_the_picture_stays() -> None:
    before, _, after = TEXT.partition(END)
    assert redrawn("above\n" + before + END + after) == "above\n" + before + END + after


def test_the_pass_written_out_is_the_pass() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    names: dict = {}
    exec(code, names)
    forward = Forward(names["model"], names["tokens_BS"], names["context"], names["Depth"](4), jnp.float32)
    expected_BSV = names["model"].logits(forward().read[0])
    assert np.ptp(expected_BSV) > 0
    np.testing.assert_allclose(names["logits_BSV"], expected_BSV, rtol=1e-5, atol=1e-6)


def test_files_that_it_names_are_there() -> None:
    named = set(re.findall(r"`((?:looplm|tests|tools|examples|configs)/[\w/.]*)`", TEXT))
    assert len(named) > 30
    assert sorted(path for path in named if not (ROOT / path).exists()) == []


def test_classes_that_it_names_are_where_it_says() -> None:
    named = re.findall(r"^\| `([\w`, ]+)` \| `([\w/.]+)`", TEXT, re.MULTILINE)  # the words
    named += re.findall(r"`([A-Z]\w+)` in `([\w/.]+\.py)`", TEXT)
    assert len(named) > 12
    for words, path in named:
        source = (ROOT / path).read_text()
        assert [word for word in words.split("`, `") if not re.search(rf"^(class|def) {word}\b", source, re.M)] == []


def test_tests_that_it_names_are_there() -> None:
    named = re.findall(r"`(tests/[\w/.]+)`, `(test_\w+)`", TEXT)
    assert len(named) > 3
    assert [name for path, name in named if f"def {name}(" not in (ROOT / path).read_text()] == []
