"""The layout of looplm: who imports whom, how large files are, what they are called, and what they may not know."""

import ast
import re
from collections.abc import Iterator
from itertools import pairwise
from statistics import median

from tools.layers import FILES, PACKAGE, imports, may_import, module_name, part, relative, top, tree_of

WITHOUT_JAX = ("looplm.config", "looplm.data", "looplm.errors", "looplm.masking")
JAX = {"jax", "jaxlib", "flax", "optax", "orbax"}
OUTSIDE = {"tools", "launch", "tests", "configs"}
MODEL_NAMES = ("ouro", "huginn", "llama", "qwen", "parcae")
CONDITIONS = {
    ast.If: ("test",),
    ast.IfExp: ("test",),
    ast.While: ("test",),
    ast.comprehension: ("ifs",),
    ast.Match: ("subject",),
    ast.match_case: ("pattern", "guard"),
}
"""The parts of a statement or expression that decide what happens."""


def test_imports_go_down() -> None:
    assert [
        f"{place} imports {module}"
        for path in FILES
        for place, module in imports(path)
        if top(module) == "looplm" and not may_import(module_name(path), module)
    ] == []


def test_nothing_imports_what_is_outside_the_package() -> None:
    assert [found for path in FILES for found in imports(path) if top(found[1]) in OUTSIDE] == []


def test_config_and_data_do_not_import_jax() -> None:
    files = [path for path in FILES if part(module_name(path)) in WITHOUT_JAX]
    assert len(files) > 3
    assert [found for path in files for found in imports(path) if top(found[1]) in JAX] == []


def test_scipy_is_imported_where_it_is_asked() -> None:
    """Training never asks it, and it takes a quarter of a start's imports."""
    at_import = [(relative(path), node) for path in FILES for node in tree_of(path).body]
    assert [(path, node.lineno) for path, node in at_import if "scipy" in named_in(node)] == []


def named_in(node: ast.AST) -> set[str]:
    """Packages that a statement imports, when it is one that does."""
    if isinstance(node, ast.Import):
        return {top(alias.name) for alias in node.names}
    return {top(node.module or "")} if isinstance(node, ast.ImportFrom) else set()


def test_the_rule_tells_right_from_wrong() -> None:
    assert may_import("looplm.train.trainer", "looplm.eval.score")
    assert may_import("looplm.cli", "looplm")
    assert may_import("looplm.ops.norm", "looplm.config.schema")
    assert not may_import("looplm.eval.score", "looplm.train.step")
    assert not may_import("looplm.model.lm", "looplm.objective")
    assert not may_import("looplm.ops.norm", "looplm.metrics.sinks")
    assert not may_import("looplm.config.load", "looplm")


def test_files_are_short() -> None:
    lengths = {relative(path): len(path.read_text().splitlines()) for path in FILES}
    assert {path: length for path, length in lengths.items() if length > 500} == {}
    assert median(length for length in lengths.values() if length) <= 150


def test_the_model_is_short() -> None:
    """It reads like the paper: three stages, and no call that does not fit on a screen."""
    assert len((PACKAGE / "model" / "lm.py").read_text().splitlines()) <= 200
    calls = [
        (relative(path), node.end_lineno - node.lineno + 1)
        for path in FILES
        if part(module_name(path)) == "looplm.model"
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.FunctionDef) and node.name == "__call__" and node.end_lineno
    ]
    assert len(calls) > 20
    assert [found for found in calls if found[1] > 60] == []


def test_files_are_named_for_what_they_hold() -> None:
    assert [relative(path) for path in FILES if path.stem.strip("_") in {"utils", "util", "helpers", "misc"}] == []


def attributes(tree: ast.AST) -> set[str]:
    """What modules keep of themselves, by name."""
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store))
    return {node.attr for node in nodes if isinstance(node.value, ast.Name) and node.value.id == "self"}


def paths_in_strings(tree: ast.AST, names: set[str]) -> Iterator[tuple[int, str]]:
    """Line and text of every string outside docstrings in which two of the names follow each other as a path, and of
    every chain of two such keys."""
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            for text in re.findall(r"\w+(?:[/.]\w+)+", node.value):
                if any(set(pair) <= names for pair in pairwise(re.split(r"[/.]", text))):
                    yield node.lineno, text
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Subscript):
            keys = [ast.unparse(key).strip("'") for key in (node.value.slice, node.slice)]
            if set(keys) <= names:
                yield node.lineno, "/".join(keys)


def test_nobody_but_the_adapters_knows_where_a_parameter_is() -> None:
    """Parts say in their declaration what they are; who asks by a path breaks when a part is moved."""
    trees = {relative(path): tree_of(path) for path in FILES}
    names = set().union(*(attributes(tree) for path, tree in trees.items() if path.startswith("model/")))
    assert {"core", "block", "gate", "table"} <= names
    assert [
        (path, *found)
        for path, tree in trees.items()
        if not path.startswith("checkpoint/adapters/")
        for found in paths_in_strings(tree, names)
    ] == []


def test_a_path_in_a_string_is_found() -> None:
    text = """
'''About core/block.'''
def f(params):
    '''Of core/block.'''
    if path.startswith("core/block/layers"): pass
    return params["core"]["gate"], params["core"]["loss"], f"{x}/core.block", "gate/exit"
"""
    found = [path for _, path in paths_in_strings(ast.parse(text), {"core", "block", "gate"})]
    assert sorted(found) == ["core.block", "core/block/layers", "core/gate"]


def named_models(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of every model named in a condition."""
    for node in ast.walk(tree):
        for field in CONDITIONS.get(type(node), ()):
            value = getattr(node, field)
            for condition in filter(None, value if isinstance(value, list) else [value]):
                words = ast.unparse(condition).lower()
                yield from ((condition.lineno, name) for name in MODEL_NAMES if name in words)


def test_nothing_is_decided_by_the_name_of_a_model() -> None:
    files = [path for path in FILES if "checkpoint/adapters" not in relative(path)]
    assert [(relative(path), *found) for path in files for found in named_models(tree_of(path))] == []


def test_a_decision_by_the_name_of_a_model_is_found() -> None:
    text = """
def f(config, x):
    if config.name == "Ouro-1.4B" or is_llama(config): pass
    match x:
        case "qwen3": pass
    return [y for y in x if y.huginn] if parcae else None
"""
    assert sorted({name for _, name in named_models(ast.parse(text))}) == sorted(MODEL_NAMES)
