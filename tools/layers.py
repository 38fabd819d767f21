"""The layers of looplm, and who imports whom: read from the files, never by importing them.

`tests/test_layers.py` holds the package to these rules, `draw_architecture.py` draws them.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "looplm"
FILES = sorted(PACKAGE.rglob("*.py"))

LAYERS = (
    {
        "looplm",
        "looplm.__main__",
        "looplm.cli",
        "looplm.api",
        "looplm.convert",
        "looplm.demo",
        "looplm.doctor",
        "looplm.lm_eval",
    },
    {"looplm.plan", "looplm.compile", "looplm.train", "looplm.eval", "looplm.infer", "looplm.report"},
    {"looplm.objective", "looplm.optim", "looplm.checkpoint"},
    {"looplm.model"},
    {"looplm.ops", "looplm.metrics"},
    {"looplm.sharding", "looplm.data"},
    {"looplm.config", "looplm.hardware", "looplm.errors", "looplm.masking", "looplm.distributed", "looplm.launch"},
)
"""From the top: a part may import parts of the layers below it, and itself."""
SIDEWAYS = {
    ("looplm.compile", "looplm.train"),
    ("looplm.plan", "looplm.compile"),
    ("looplm.plan", "looplm.train"),
    ("looplm.train", "looplm.eval"),
    ("looplm.eval", "looplm.infer"),
    ("looplm.config", "looplm.errors"),
    ("looplm.config", "looplm.masking"),
    ("looplm.distributed", "looplm.errors"),
    ("looplm.distributed", "looplm.launch"),
    ("looplm.launch", "looplm.errors"),
}
"""What may be imported within a layer; in the top layer everything may."""


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


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """Place and module of every import of a file, those inside functions too."""
    for node in ast.walk(tree_of(path)):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        place = f"{relative(path)}:{node.lineno}"
        if isinstance(node, ast.Import):
            yield from ((place, alias.name) for alias in node.names)
        else:
            assert not node.level, f"{place}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from ((place, name if name in MODULES else str(node.module)) for name in names)


def may_import(importer: str, imported: str) -> bool:
    above, below = layer(importer), layer(imported)
    same = part(importer) == part(imported) or above == 0 or (part(importer), part(imported)) in SIDEWAYS
    return above < below or (above == below and same)
