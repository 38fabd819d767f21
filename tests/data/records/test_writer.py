"""A folder of records holds what was given, in the format of the authors' programs, or is not there."""

import json
from pathlib import Path

import numpy as np
import pytest

from looplm.config.schema import Records
from looplm.data.records.windows import RecordWindows
from looplm.data.records.writer import PartWriter, new_folder, write_identifiers
from looplm.errors import UserError


def write(out: Path, groups: int, *, fail: bool = False) -> None:
    rng = np.random.default_rng(0)
    with new_folder(out) as folder:
        with PartWriter(folder / "train", 3) as part:
            for group in range(groups):
                examples = rng.integers(1, 5, (4, 3))
                part.add(examples, examples[:, ::-1], examples_P=[3, 1], ids_P=[2 * group + 1, 2 * group + 2])
                if fail:
                    raise UserError("no more")
            part.finish(vocab_size=6, num_ids=2 * groups + 1)
        write_identifiers(folder, [str(number) for number in range(2 * groups)])


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write(tmp_path / "out", 150)
    place = tmp_path / "out" / "train"
    arrays = {path.stem.removeprefix("all__"): np.load(path) for path in place.glob("*.npy")}
    assert {name: (array.dtype.str, array.shape) for name, array in arrays.items()} == {
        "inputs": ("|u1", (600, 3)),
        "labels": ("|u1", (600, 3)),
        "puzzle_identifiers": ("<i4", (300,)),
        "puzzle_indices": ("<i4", (301,)),
        "group_indices": ("<i4", (151,)),
    }
    rng = np.random.default_rng(0)
    want = np.concatenate([rng.integers(1, 5, (4, 3)) for _ in range(150)])
    np.testing.assert_array_equal(arrays["inputs"], want)
    np.testing.assert_array_equal(arrays["labels"], want[:, ::-1])
    assert arrays["puzzle_indices"].tolist() == [0, *(4 * group + end for group in range(150) for end in (3, 4))]
    assert json.loads((place / "dataset.json").read_text()) == {
        "seq_len": 3, "vocab_size": 6, "pad_id": 0, "ignore_label_id": 0, "blank_identifier_id": 0,
        "num_puzzle_identifiers": 301, "total_groups": 150, "mean_puzzle_examples": 2.0, "total_puzzles": 300,
        "sets": ["all"],
    }  # fmt: skip
    assert len(json.loads((tmp_path / "out" / "identifiers.json").read_text())) == 301
    batch = RecordWindows(Records(folder=str(tmp_path / "out")), 3).read(np.arange(600))
    assert batch["ids"].tolist() == np.repeat(np.arange(1, 301), [3, 1] * 150).tolist()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no more"):
        write(tmp_path / "out", 1, fail=True)
    assert not any(tmp_path.iterdir())
    (tmp_path / ".out.partial" / "train").mkdir(parents=True)  # of a start that was killed
    write(tmp_path / "out", 1)
    with pytest.raises(UserError, match=r"--out .*out is there already; remove it or choose another folder"):
        write(tmp_path / "out", 1)
