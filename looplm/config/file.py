"""Which file and which of its functions `FILE[:NAME]` means; FILE may also be the name of a shipped file.

A file holds one config, `def config() -> Run`, or several of one system, `def config_NAME() -> Run`. Python allows
neither dots nor dashes in the name of a function, so `1.4b` is made by `config_1_4b`. Nothing is run here.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from looplm.config.renamed import RENAMED
from looplm.errors import UserError, note

SHIPPED_CONFIGS = (
    Path(__file__).parents[2] / "configs",  # a checkout
    # An installed wheel: below the prefix that the package lies in, be it of Python, of a user or of `pip --target`.
    *(folder / "share" / "looplm" / "configs" for folder in Path(__file__).parents),
)

Configs = dict[str, Callable[[], Any]]


class ConfigFile(NamedTuple):
    """A file that exists, and which of its configs is meant."""

    path: Path
    name: str | None = None
    """None means the first of the file."""
    overrides: tuple[str, ...] = ()
    """What an old name stands for beside the new one, as `key=value`."""


def shipped_configs() -> Path:
    """Returns the folder of the config files that come with looplm."""
    return next((folder for folder in SHIPPED_CONFIGS if folder.is_dir()), SHIPPED_CONFIGS[0])


def find_config(given: str | Path) -> ConfigFile:
    """Finds the file of `FILE[:NAME]`; FILE is a path, or the name of a shipped file (`ouro:tiny`, `finetune/lora`).

    An old name of a shipped file is told on stderr with the new one. Raises UserError when there is no such file.
    """
    file, name = _split(str(given))
    for path in _places(file):
        if path.is_file():
            return ConfigFile(path, name)
        if name is None and (renamed := _renamed(path)):
            words = " --set ".join([f"{renamed.path}:{renamed.name}", *renamed.overrides])
            note(f"{given} is {words} now; the old name works until version 0.2")
            return renamed
    shipped = sorted(path.stem for path in shipped_configs().glob("*.py"))
    nearest = _nearest(Path(file).stem, shipped)
    reason = "is a folder" if Path(file).is_dir() else "does not exist"
    raise UserError(f"config file {file} {reason}{nearest}; the shipped ones are {', '.join(shipped)}")


def configs_among(names: Mapping[str, Any]) -> Configs:
    """Returns the configs by name, of all that a file defines and in its order; `config` itself has an empty name."""
    return {_shown(key): value for key, value in names.items() if re.match(r"config(_|$)", key) and callable(value)}


def choose(file: ConfigFile, configs: Configs) -> Callable[[], Any]:
    """Returns the function that is meant; raises UserError when the file has no such config."""
    if not configs:
        raise UserError(f"{file.path} defines no function `config`; it must hold `def config() -> Run`")
    if file.name is None:
        return configs.get("") or next(iter(configs.values()))
    for name, function in configs.items():
        if name and _identifier(name) == _identifier(file.name):
            return function
    names = [name for name in configs if name]
    there = f"it has {', '.join(names)}" if names else "it has one config, without a name"
    raise UserError(f"{file.path} has no config {file.name!r}{_nearest(file.name, names)}; {there}")


def _split(text: str) -> tuple[str, str | None]:
    """FILE and NAME. A colon may also belong to a path, a drive (C:\\runs) or an address (gs://bucket/run.py)."""
    file, _, name = text.rpartition(":")
    if not file or Path(text).is_file() or re.search(r"[/\\]|\.py$", name):
        return text, None
    return file, name


def _places(file: str) -> Iterator[Path]:
    yield Path(file)
    if not Path(file).is_absolute():
        yield shipped_configs() / f"{file.removesuffix('.py')}.py"


def _renamed(path: Path) -> ConfigFile | None:
    """What replaces a file that was shipped under another name."""
    new, *overrides = RENAMED.get(path.stem, ("",))
    file, _, name = new.partition(":")
    there = bool(new) and path.with_name(file).is_file()
    return ConfigFile(path.with_name(file), name, tuple(overrides)) if there else None


def _identifier(name: str) -> str:
    return re.sub(r"\W", "_", name).lower()


def _shown(function: str) -> str:
    """`config_1_4b` -> `1.4b`."""
    return re.sub(r"(?<=\d)_(?=\d)", ".", function.removeprefix("config").removeprefix("_"))


def _nearest(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""
