"""From a config file and `--set` overrides to a checked `Run`, and back to JSON.

`config.file` finds the file and its function. Overrides address any leaf by its dotted name. Every mistake becomes one
`UserError` that names the key, the value and what was expected.
"""

import difflib
import json
import runpy
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from looplm.config.check import check
from looplm.config.file import ConfigFile, Configs, choose, configs_among, find_config
from looplm.config.file import shipped_configs as shipped_configs  # noqa: PLC0414
from looplm.config.schema import Run, Section
from looplm.config.schema.importing import importable, module_name
from looplm.config.schema.own import NOT_FOUND, Own, subclasses
from looplm.errors import UserError
from looplm.masking import mask_tree


def load_config(given: str | Path, overrides: Sequence[str] = ()) -> Run:
    """Runs the config `FILE[:NAME]`, applies `key=value` overrides in order and checks the result.

    FILE is a path or the name of a shipped file (`ouro:tiny`); without NAME the file's first config is taken. Raises
    UserError for a missing or broken file, an unknown name or key, a wrong type or sections that do not fit together.
    """
    file = find_config(given)
    run = _call(file)
    return check(override(run, dict(_split(text) for text in (*file.overrides, *overrides))))


def configs_in(path: Path) -> Configs:
    """Runs the file, under the name by which it can be imported, and returns its configs by name, in its order."""
    return configs_among(runpy.run_path(str(path), run_name=module_name(path)))


def override(run: Run, changes: Mapping[str, Any]) -> Run:
    """Returns a copy of `run` with leaves replaced, e.g. `override(run, {"model.dim": 256})`.

    A bare string given to a union selects its variant: `{"model.injection": "concat"}`.
    """
    tree = run.model_dump()
    for key, value in changes.items():
        _set(tree, key, value)
    return from_dict(tree)


def from_dict(tree: Mapping[str, Any]) -> Run:
    """Builds a Run from nested dictionaries (as in `config.json`)."""
    try:
        return Run.model_validate(tree)
    except ValidationError as error:
        raise UserError(_explain(error, Run)) from error


def from_json(path: Path) -> Run:
    """Reads a `config.json` written by `to_json`; runs no code."""
    try:
        return Run.model_validate(json.loads(path.read_text()))
    except ValidationError as error:
        complete = any(fault["type"] == NOT_FOUND for fault in error.errors())
        remedy = "" if complete else "; restore it from the checkpoint's copy"
        raise UserError(f"{path}: {_explain(error, Run)}{remedy}") from error
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path} does not exist; is {path.parent} a run directory of `looplm train`?") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); mend its permissions") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); restore it from the checkpoint's copy") from error


def to_json(run: Run) -> str:
    """As it is written: without secrets."""
    return masked(run).model_dump_json(indent=2) + "\n"


def masked(run: Run) -> Run:
    """The run as it may be shown and written: what looks like a password or a key is `***`."""
    return Run.model_validate(mask_tree(run.model_dump()))


def leaves(run: Run) -> dict[str, Any]:
    """All leaves as {dotted name: value}, in the order of the schema; without secrets."""

    def walk(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict):
            for key, child in value.items():
                yield from walk(f"{prefix}.{key}" if prefix else key, child)
        else:
            yield prefix, value

    return dict(walk("", masked(run).model_dump(mode="json")))


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What differs between the leaves of two runs: {key: (before, after)}; None where one of them has no such key."""
    values = {key: (before.get(key), after.get(key)) for key in dict.fromkeys((*before, *after))}
    return {key: (old, new) for key, (old, new) in values.items() if old != new}


def _call(file: ConfigFile) -> Run:
    """Runs the file and its function; whatever they raise is the user's mistake."""
    path = file.path
    try:
        with importable(path.parent):
            function = choose(file, configs_in(path))
            run = function()
    except UserError:
        raise
    except ValidationError as error:
        raise UserError(f"{path}: {_explain(error, _class_named(error.title))}") from error
    except Exception as error:
        reason = error.msg if isinstance(error, SyntaxError) else " ".join(str(error).split())
        raise UserError(
            f"{path} line {_line_in(path, error)}: {type(error).__name__}: {reason}; mend the file"
        ) from error
    if not isinstance(run, Run):
        raise UserError(f"{path}: {getattr(function, '__name__', 'config')}() returned {type(run).__name__}, not a Run")
    return run


def _line_in(path: Path, error: Exception) -> int:
    """The last line of the file that had a part in the error; 1 when it could not even be read."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return error.lineno or 1
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return (lines and lines[-1]) or 1


def given(overrides: Sequence[str]) -> set[str]:
    """The leaves that `--set` names."""
    return {_split(text)[0] for text in overrides}


def _split(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not all(key.strip().split(".")):
        raise UserError(f"--set {text!r} is not of the form key=value, e.g. --set loop.num_loops=8")
    try:
        return key.strip(), json.loads(value)
    except json.JSONDecodeError:
        return key.strip(), value


def _set(tree: dict[str, Any], dotted: str, value: Any) -> None:
    """Replaces one leaf of the nested dictionaries; unknown names raise with the nearest one."""
    *parents, last = dotted.split(".")
    node: Any = tree
    cls: type[BaseModel] | None = Run
    for depth, name in enumerate(parents):
        cls = _child_class(cls, name, node, ".".join(parents[:depth]))
        if not isinstance(node[name], dict):
            # A None that stands for an absent section (e.g. model.exit_gate): setting a leaf switches it on.
            node[name] = {}
        node = node[name]
    _require(cls, last, ".".join(parents))
    variants = _variants(cls, last)
    if isinstance(value, bool) and cls is not None and not _holds_bool(cls.model_fields[last].annotation):
        # Pydantic would read true as 1.
        raise UserError(f"{dotted}={str(value).lower()}: input should not be true or false")
    if last == "kind":
        node.clear()  # another variant of a union has other fields
    elif isinstance(value, str) and (kinds := [_kind(v) for v in variants if "kind" in v.model_fields]):
        value = {"kind": value} if value in kinds or not _takes_text(cls, last) else value
    node[last] = value


def _child_class(cls: type[BaseModel] | None, name: str, node: dict[str, Any], prefix: str) -> type[BaseModel] | None:
    _require(cls, name, prefix)
    variants = _variants(cls, name)
    if not variants:
        raise UserError(f"{_join(prefix, name)} is a value, not a section; set it as --set {_join(prefix, name)}=...")
    kind = node[name].get("kind") if isinstance(node.get(name), dict) else None
    return next((v for v in variants if kind is not None and _kind(v) == kind), variants[0])


def _require(cls: type[BaseModel] | None, name: str, prefix: str) -> None:
    if cls is not None and name not in cls.model_fields:
        raise UserError(f"{_join(prefix, name)}: unknown key{_nearest(name, cls, prefix)}")


def _variants(cls: type[BaseModel] | None, name: str, inside: type | None = None) -> list[type[BaseModel]]:
    """The sections that field `name` may hold: none for a value, several for a union; or those `inside` its tuples."""
    found = []
    for annotation in _forms(cls.model_fields[name].annotation) if cls is not None else ():
        if inside is not None and get_origin(annotation) is inside:
            found += [form for argument in get_args(annotation) for form in _forms(argument)]
        elif inside is None:
            found.append(annotation)
    sections = [form for form in found if isinstance(form, type) and issubclass(form, Section)]
    # A base of users' parts stands for those that there are.
    return [kind for form in sections for kind in (subclasses(form) if issubclass(form, Own) else [form])]


def _takes_text(cls: type[BaseModel] | None, name: str) -> bool:
    return cls is not None and str in _forms(cls.model_fields[name].annotation)


def _forms(annotation: Any) -> list[Any]:
    """The types that a union holds, whatever they are wrapped in."""
    if get_origin(annotation) not in (Union, UnionType, Annotated):
        return [annotation]
    return [form for argument in get_args(annotation) for form in _forms(argument)]


def _holds_bool(annotation: Any) -> bool:
    return annotation is bool or any(_holds_bool(argument) for argument in get_args(annotation))


def _nearest(name: str, cls: type[BaseModel], prefix: str) -> str:
    close = difflib.get_close_matches(name, cls.model_fields, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {_join(prefix, close[0])}?"
    return f"; {prefix or 'a run'} has {', '.join(cls.model_fields)}"


def _explain(error: ValidationError, root: type[BaseModel]) -> str:
    """One line per fault of a pydantic error, in looplm's words."""
    lines = []
    for fault in error.errors():
        # Marks that tell the forms of a value apart ("<folder>") are not part of the key.
        location = [str(part) for part in fault["loc"] if not str(part).startswith("<")]
        cls, path, variants, elements = root, [], [], []
        for part in location[:-1]:
            if part in cls.model_fields:
                path.append(part)
                variants, elements = _variants(cls, part), _variants(cls, part, inside=tuple)
                cls = variants[0] if variants else cls
            elif part.isdigit() and elements:
                path.append(part)
                cls = elements[0]
            else:
                # pydantic inserts the tag of a union into the location; it is not part of the key.
                cls = next((v for v in variants if "kind" in v.model_fields and _kind(v) == part), cls)
        name, prefix = location[-1] if location else root.__name__, ".".join(path)
        if fault["type"] == "extra_forbidden":
            lines.append(f"{_join(prefix, name)}: unknown key{_nearest(name, cls, prefix)}")
        elif fault["type"] == "missing":
            lines.append(f"{_join(prefix, name)} is missing; {cls.__name__} requires it")
        elif fault["type"] == "union_tag_invalid":
            context = fault["ctx"]
            lines.append(f"{_join(prefix, name)}={context['tag']!r} is not known; use {context['expected_tags']}")
        elif fault["type"] in ("model_type", "model_attributes_type"):
            section = _variants(cls, name)[0] if name in cls.model_fields else root
            fields = ", ".join(section.model_fields)
            lines.append(f"{_join(prefix, name)}={fault['input']!r} is a section and no value; it has {fields}")
        elif fault["type"] == NOT_FOUND:
            lines.append(f"{_join(prefix, name)}: {fault['msg']}")
        else:
            value = f"={fault['input']!r}" if not isinstance(fault["input"], dict) else ""
            lines.append(f"{_join(prefix, name)}{value}: {fault['msg'][0].lower()}{fault['msg'][1:]}")
    return "; ".join(lines)


def _kind(variant: type[BaseModel]) -> str:
    return str(variant.model_fields["kind"].default)


def _class_named(title: str) -> type[BaseModel]:
    def subclasses(cls: type[BaseModel]) -> Iterator[type[BaseModel]]:
        for child in cls.__subclasses__():
            yield child
            yield from subclasses(child)

    return next((cls for cls in subclasses(Section) if cls.__name__ == title), Run)


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
