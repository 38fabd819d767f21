"""The names of all shipped configs, as they are given to `looplm train`."""

from pathlib import Path

from looplm.config.load import configs_in, shipped_configs


def names_of(files: list[Path], folder: str = "") -> list[str]:
    """As they are given to `looplm train`."""
    return [
        f"{folder}{path.stem}:{name}" if name else folder + path.stem for path in files for name in configs_in(path)
    ]


FILES = sorted(shipped_configs().glob("*.py"))
NAMES = names_of(FILES)
FINETUNE = sorted(shipped_configs().glob("finetune/*.py"))
"""Their models are those of folders that are named on the command line."""
FINETUNE_NAMES = names_of(FINETUNE, "finetune/")
