import json
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Records as the authors' programs write them, by numpy alone: two groups of 2 and 1 puzzles, 6 examples."""
    place = tmp_path / "grids" / "train"
    place.mkdir(parents=True)
    arrays = {
        "inputs": np.arange(24, dtype=np.uint8).reshape(6, 4) % 9,
        "labels": (np.arange(24, dtype=np.uint8).reshape(6, 4) + 4) % 9,
        "puzzle_identifiers": np.array([3, 1, 2], np.int32),
        "puzzle_indices": np.array([0, 3, 4, 6], np.int32),
        "group_indices": np.array([0, 2, 3], np.int32),
    }
    for name, array in arrays.items():
        np.save(place / f"all__{name}.npy", array)
    metadata = {
        "pad_id": 0,
        "ignore_label_id": 0,
        "blank_identifier_id": 0,
        "vocab_size": 9,
        "seq_len": 4,
        "num_puzzle_identifiers": 4,
        "total_groups": 2,
        "mean_puzzle_examples": 2.0,
        "sets": ["all"],
    }
    (place / "dataset.json").write_text(json.dumps(metadata))
    (place.parent / "identifiers.json").write_text('["<blank>", "a", "b", "c"]')
    return place.parent
