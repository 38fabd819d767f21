"""What a run keeps of the official model that its weights came from: beside the weights, what an export needs to be
that model's folder again. None of it changes a number.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from looplm.checkpoint.folder import checkpoint_of
from looplm.errors import UserError

OFFICIAL = "official.json"
"""In a run: the config.json of that model."""
GENERATION = "generation_config.json"
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
TOKENIZER_FILES = (
    TOKENIZER, TOKENIZER_CONFIG, "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "chat_template.json",
)  # fmt: skip


def official_config(run: Path) -> dict[str, Any]:
    """The config.json that a run's weights came with; empty for one that descends from no official model."""
    return _read(run / OFFICIAL)


def kept_files(source: Path | None, workdir: Path, tokenizer: Mapping[str, bytes]) -> dict[str, bytes]:
    """Files that a run writes into its directory when it begins, or goes on, by name.

    A dataset's tokenizer says what tokens mean, and knows no more than that; where it is the model's, what the model's
    files also say of it is kept with it.

    Args:
        source: where the first weights are from; None when they are drawn, or long since taken.
        workdir: of the run.
        tokenizer: the files of the run's tokenizer.
    """
    from looplm.checkpoint.hf_folder import is_official  # here: a run begins without official models, as a rule

    files: dict[str, bytes] = {}
    for root in ([] if source is None else [checkpoint_of(source)[0]]) + [workdir]:
        config = root / ("config.json" if root != workdir and is_official(root) else OFFICIAL)
        found = {OFFICIAL: config, GENERATION: root / GENERATION}
        if TOKENIZER in tokenizer and _bytes(root / TOKENIZER) == tokenizer[TOKENIZER]:
            found |= {name: root / name for name in TOKENIZER_FILES[2:]}
            said = _read(root / TOKENIZER_CONFIG) | json.loads(tokenizer.get(TOKENIZER_CONFIG, b"{}"))
            files[TOKENIZER_CONFIG] = (json.dumps(said, indent=2) + "\n").encode()
        files |= {name: data for name, path in found.items() if (data := _bytes(path)) is not None}
    return files


def _bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None  # it is not needed to train


def _read(path: Path) -> dict[str, Any]:
    if (data := _bytes(path)) is None:
        return {}
    try:
        stored = json.loads(data)
    except ValueError as error:
        raise UserError(f"{path} cannot be read ({error}); take it away, or mend it") from error
    return stored if isinstance(stored, dict) else {}
