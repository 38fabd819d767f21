"""Official folders to test with: those of tests/golden, and of the folders that LOOPLM_GOLDEN names."""

import json
import os
from pathlib import Path

GOLDEN = Path(__file__).parents[1] / "golden"
SUPPORTED = (
    "ouro", "huginn", "parcae", "moeut", "nanbeige", "llama", "qwen3", "olmo2", "mixtral", "olmoe", "qwen3moe",
    "hrm", "trm", "urm", "hrm_text", "albert", "txl",
)  # fmt: skip
UNREAD = ("ut_act", "mor_expert", "mor_token", "mhc")
"""Systems whose folders are no checkpoints that looplm reads: their tests map the names of tensors."""


def folders(*systems: str) -> list[Path]:
    """All variants of these systems (`SYSTEM_VARIANT`); of every supported one when none is named."""
    wanted = systems or SUPPORTED
    elsewhere = [Path(place) for place in os.environ.get("LOOPLM_GOLDEN", "").split(os.pathsep) if place]
    found: dict[str, Path] = {}
    for place in (GOLDEN, *elsewhere):
        for path in sorted(place.iterdir()):
            if system_of(path) in wanted and (path / "config.json").is_file():
                found.setdefault(path.name, path)
    return list(found.values())


def system_of(folder: Path) -> str | None:
    """The system of a folder; None for one that no test knows."""
    names = [system for system in (*SUPPORTED, *UNREAD) if folder.name.startswith(f"{system}_")]
    return max(names, key=len, default=None)


def config_of(folder: Path, name: str = "config.json") -> dict:
    return json.loads((folder / name).read_text())
