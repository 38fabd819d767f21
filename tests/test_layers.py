"""The layout of looplm: who imports whom, how large files are, what they are called, and what they may not know."""

import ast
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import looplm

PACKAGE = Path(looplm.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

LAYERS = (
    {"looplm", "looplm.__main__", "looplm.cli", "looplm.api", "looplm.demo", "looplm.doctor"},
    {"looplm.compile", "looplm.train", "looplm.eval", "looplm.infer", "looplm.report"},
    {"looplm.objective", "looplm.optim", "looplm.checkpoint"},
    {"looplm.model"},
    {"looplm.ops", "looplm.metrics"},
    {"looplm.sharding", "looplm.data"},
    {"looplm.config", "looplm.hardware", "looplm.errors", "looplm.masking", "looplm.distributed"},
)
"""From the top: a part may import parts of the layers below it, and itself."""
SIDEWAYS = {
    ("looplm.compile", "looplm.train"),
    ("looplm.train", "looplm.eval"),
    ("looplm.eval", "looplm.infer"),
    ("looplm.config", "looplm.errors"),
    ("looplm.config", "looplm.masking"),
    ("looplm.distributed", "looplm.errors"),
}
"""What may be imported within a layer; in the top layer everything may."""
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


def relative(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path) for path in FILES}


def part(module: str) -> str:
    """The part of looplm that a module belongs to: `looplm.ops.attention.mask` -> `looplm.ops`."""
    return ".".join(module.split(".")[:2])


def layer(module: str) -> int:
    found = [number for number, names in enumerate(LAYERS) if part(module) in names]
    assert found, f"{part(module)} is in no layer; add it to LAYERS and to the design"
    return found[0]


def top(module: str) -> str:
    return module.split(".", maxsplit=1)[0]


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """Place and module of every import of a file, those inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        place = f"{relative(path)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import):
            yield from ((place, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{place}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from ((place, name if name in MODULES else str(node.module)) for name in names)


def may_import(importer: str, imported: str) -> bool:
    above, below = layer(importer), layer(imported)
    same = part(importer) == part(imported) or above == 0 or (part(importer), part(imported)) in SIDEWAYS
    return above < below or (above == below and same)


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


def test_files_are_named_for_what_they_hold() -> None:
    assert [relative(path) for path in FILES if path.stem.strip("_") in {"utils", "util", "helpers", "misc"}] == []


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
    assert [(relative(path), *found) for path in files for found in named_models(ast.parse(path.read_text()))] == []


def test_a_decision_by_the_name_of_a_model_is_found() -> None:
    text = """
def f(config, x):
    if config.name == "Ouro-1.4B" or is_llama(config): pass
    match x:
        case "qwen3": pass
    return [y for y in x if y.huginn] if parcae else None
"""
    assert sorted({name for _, name in named_models(ast.parse(text))}) == sorted(MODEL_NAMES)
