"""Modules of the user: what they are called, and whether one is imported because a config names a class of it.

A config that is read holds names and never code. A name is followed only where Python finds modules anyway (installed,
PYTHONPATH), and only when the source, which is read and not run, defines a class of that name that derives from others.
"""

import ast
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path


def import_for(kind: str) -> str | None:
    """Imports the module of `module:Class`. Returns why it did not, with the remedy; None when it did."""
    module, _, name = kind.partition(":")
    file = f"{module.replace('.', '/')}.py"
    if module not in sys.modules:
        if (source := _source(module)) is None:
            return f"Python finds no {file}; put the folder that holds it on PYTHONPATH, or import {module} first"
        if name not in _classes(source):
            return (
                f"the {file} that Python finds defines no such class; put the folder of the one that does on PYTHONPATH"
            )
        try:
            importlib.import_module(module)
        except Exception as error:
            return f"{file} fails with {type(error).__name__}: {' '.join(str(error).split())}; mend it"
    return None


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Inside, modules of the folder are found, after all others."""
    sys.path.append(str(folder.resolve()))
    try:
        yield
    finally:
        sys.path.remove(str(folder.resolve()))


def module_name(path: Path) -> str | None:
    """The name by which a file is imported from its folder; None where that means another module, or nothing."""
    name = path.stem
    if "." in name or path.suffix != ".py":
        return None
    if name in sys.modules:
        found = getattr(sys.modules[name], "__file__", None)
    else:
        with importable(path.parent):
            spec = find_spec(name)
        found = spec.origin if spec else None
    return name if found and Path(found).exists() and path.samefile(found) else None


def _source(module: str) -> str | None:
    """The text of a module that Python finds; nothing of it or of its packages is run."""
    top, *inner = module.split(".")
    try:
        spec = find_spec(top) if top else None
        for part in inner:
            if spec is None or spec.submodule_search_locations is None:
                return None
            spec = PathFinder.find_spec(f"{spec.name}.{part}", list(spec.submodule_search_locations))
        return Path(spec.origin).read_text() if spec and spec.origin and spec.origin.endswith(".py") else None
    except (OSError, ValueError):
        return None


def _classes(source: str) -> set[str]:
    """Names of the classes that a module defines outside of functions, those that derive from others."""
    try:
        return {node.name for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.bases}
    except SyntaxError:
        return set()
