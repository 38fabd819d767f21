"""Official folders to test with: those of tests/golden, and of the folders that LOOPLM_GOLDEN names."""

import json
import os
from pathlib import Path

GOLDEN = Path(__file__).parents[1] / "golden"


def folders(*systems: str) -> list[Path]:
    """All variants of these systems (the first part of a folder's name); of every supported one when none is named."""
    wanted = systems or ("ouro", "huginn", "parcae", "moeut", "mixtral", "olmoe", "qwen3moe")
    elsewhere = [Path(place) for place in os.environ.get("LOOPLM_GOLDEN", "").split(os.pathsep) if place]
    found: dict[str, Path] = {}
    for place in (GOLDEN, *elsewhere):
        for path in sorted(place.iterdir()):
            if path.name.partition("_")[0] in wanted and (path / "config.json").is_file():
                found.setdefault(path.name, path)
    return list(found.values())


def config_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())
