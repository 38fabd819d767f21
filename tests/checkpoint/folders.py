"""Official folders to test with: those of tests/golden, and of the folders that LOOPLM_GOLDEN names."""

import json
import os
from pathlib import Path

GOLDEN = Path(__file__).parents[1] / "golden"
SUPPORTED = (
    "ouro", "huginn", "parcae", "moeut", "nanbeige", "llama", "qwen3", "olmo2", "mixtral", "olmoe", "qwen3moe",
)  # fmt: skip


def folders(*systems: str) -> list[Path]:
    """All variants of these systems (the first part of a folder's name); of every supported one when none is named."""
    wanted = systems or SUPPORTED
    elsewhere = [Path(place) for place in os.environ.get("LOOPLM_GOLDEN", "").split(os.pathsep) if place]
    found: dict[str, Path] = {}
    for place in (GOLDEN, *elsewhere):
        for path in sorted(place.iterdir()):
            if path.name.partition("_")[0] in wanted and (path / "config.json").is_file():
                found.setdefault(path.name, path)
    return list(found.values())


def config_of(folder: Path, name: str = "config.json") -> dict:
    return json.loads((folder / name).read_text())
