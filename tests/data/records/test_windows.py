"""Records are read as the authors' program reads them, once an epoch, and a broken folder is refused in one line."""

import json
import pickle
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from looplm.config.schema import Data, Facts, Records, Source
from looplm.data.held_out import open_held_out
from looplm.data.loader import eval_batches, train_loader
from looplm.data.mixture import Mixture, open_mixture
from looplm.data.records.windows import RecordWindows
from looplm.errors import UserError

B, S = 4, 4


def data(folder: Path, **fields) -> Data:
    return Data(**{"train": Records(folder=str(folder)), "sequence_length": S, "batch_tokens": B * S} | fields)


def array(folder: Path, field: str, part: str = "train") -> np.ndarray:
    return np.load(folder / part / f"all__{field}.npy")


def test_examples_are_those_of_the_files(folder: Path) -> None:
    windows = RecordWindows(Records(folder=str(folder)), S, with_documents=True)
    batch = windows.read(np.array([5, 0, 3, 6]))
    assert batch["tokens"].tolist() == [*array(folder, "inputs")[[5, 0, 3]].tolist(), [0] * 4]
    # Worked by hand: example 5 is the second of the third puzzle, 0 of the first, 3 of the second; 6 is none.
    assert batch["ids"].tolist() == [2, 3, 1, 0]
    assert batch["labels"].tolist() == [[6, 7, 8, -100], [4, 5, 6, 7], [7, 8, -100, 1], [-100] * 4]
    assert batch["segments"].tolist() == [[1] * 4] * 3 + [[0] * 4]
    assert batch["positions"].tolist() == [[0, 1, 2, 3]] * 3 + [[0] * 4]
    assert batch["documents"].tolist() == [[5] * 4, [0] * 4, [3] * 4, [-1] * 4]
    assert {value.dtype for value in batch.values()} == {np.dtype(np.int32)}
    assert (windows.vocab_size, windows.num_ids, len(windows), windows.padding) == (9, 4, 6, 0.0)


def rows(mixture: Mixture, steps: int, hosts: int, start: int = 0) -> list[list[int]]:
    """Ids and tokens of all rows of steps, each read by as many hosts."""
    loaders = [train_loader(mixture, start_step=start, host=host, num_hosts=hosts, prefetch=1) for host in range(hosts)]
    batches = [batch for step in zip(*(islice(loader, steps) for loader in loaders), strict=True) for batch in step]
    return [
        [id, *tokens] for batch in batches for id, tokens in zip(batch["ids"], batch["tokens"].tolist(), strict=True)
    ]


def test_every_example_is_read_once_an_epoch_whoever_reads(folder: Path) -> None:
    mixture = open_mixture(data(folder), seed=0)
    read = rows(mixture, 6, 1)
    want = np.column_stack([[3, 3, 3, 1, 2, 2], array(folder, "inputs")]).tolist()
    for epoch in range(4):
        assert sorted(read[6 * epoch : 6 * epoch + 6]) == sorted(want)
    assert read[:6] != read[6:12]
    for hosts in (2, 4):
        assert rows(mixture, 6, hosts) == read
    assert rows(pickle.loads(pickle.dumps(mixture)), 3, 1, start=3) == read[3 * B :]
    assert rows(open_mixture(data(folder), seed=1), 6, 1) != read


def test_sets_follow_one_another(folder: Path) -> None:
    for field in ("inputs", "labels", "puzzle_identifiers", "puzzle_indices", "group_indices"):
        np.save(folder / "train" / f"more__{field}.npy", array(folder, field))
    change(folder, sets=["all", "more"], total_groups=4)
    windows = RecordWindows(Records(folder=str(folder)), S)
    batch = windows.read(np.arange(12))
    assert batch["tokens"].tolist() == [*array(folder, "inputs").tolist()] * 2
    assert batch["ids"].tolist() == [3, 3, 3, 1, 2, 2] * 2


def test_an_evaluation_reads_them_in_order_and_pads(folder: Path) -> None:
    held_out = open_held_out(Records(folder=str(folder)), data(folder))
    assert (held_out.name, held_out.num_documents) == ("grids/train", 6)
    batches = list(eval_batches(held_out.windows, batch_size=4))
    assert np.concatenate([batch["documents"][:, 0] for batch in batches]).tolist() == [0, 1, 2, 3, 4, 5, -1, -1]
    assert batches[1]["ids"].tolist() == [2, 2, 0, 0]


def test_the_fingerprint_is_that_of_what_is_read(folder: Path, tmp_path: Path) -> None:
    def fingerprint(folder: Path) -> str:
        return RecordWindows(Records(folder=str(folder)), S).fingerprint

    before = fingerprint(folder)
    moved = folder.rename(tmp_path / "elsewhere")
    assert fingerprint(moved) == before
    seen = {before}
    for field in ("inputs", "labels", "puzzle_identifiers"):
        values = array(moved, field)
        values.reshape(-1)[0] ^= 1
        np.save(moved / "train" / f"all__{field}.npy", values)
        seen.add(fingerprint(moved))
    change(moved, ignore_label_id=None)
    assert len(seen | {fingerprint(moved)}) == 5


def test_labels_may_be_ignored_by_any_number_or_none(folder: Path) -> None:
    change(folder, ignore_label_id=None)
    first = RecordWindows(Records(folder=str(folder)), S).read(np.array([5]))
    assert first["labels"].tolist() == [[6, 7, 8, 0]]
    labels = array(folder, "labels").astype(np.int64)
    labels[5, 1] = -100
    np.save(folder / "train" / "all__labels.npy", labels)
    change(folder, ignore_label_id=-100)
    assert RecordWindows(Records(folder=str(folder)), S).read(np.array([5]))["labels"].tolist() == [[6, -100, 8, 0]]


def test_a_mixture_has_ids_of_all_rows_or_of_none(folder: Path) -> None:
    both = (
        Source(name="own", data=Records(folder=str(folder))),
        Source(name="task", data=Facts(entities=30, relations=8, out_degree=5)),
    )
    with pytest.raises(UserError, match="mixes own, whose examples have puzzle ids, with task, whose"):
        open_mixture(data(folder, train=both), seed=0)


def test_a_mixture_passes_ids_through(folder: Path) -> None:
    two = tuple(Source(name=name, data=Records(folder=str(folder))) for name in ("a", "b"))
    mixture = open_mixture(data(folder, train=two), seed=0)
    known = {tuple(tokens): id for tokens, id in zip(array(folder, "inputs").tolist(), [3, 3, 3, 1, 2, 2], strict=True)}
    read = rows(mixture, 6, 1)
    assert all(known[tuple(tokens)] == id for id, *tokens in read)
    assert mixture.num_ids == 4
    place = two[0].model_copy(update={"data": Records(folder="elsewhere")})
    moved = data(folder, train=(place, two[1]))
    assert moved.read_before(3) == data(folder, train=two).read_before(3)


def change(folder: Path, **fields) -> None:
    path = folder / "train" / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def save(folder: Path, field: str, values: object) -> None:
    np.save(folder / "train" / f"all__{field}.npy", values)


BROKEN = {
    "all__labels.npy is not there": lambda f: (f / "train" / "all__labels.npy").unlink(),
    "dataset.json is not there": lambda f: (f / "train" / "dataset.json").unlink(),
    "no train/dataset.json; it holds test": lambda f: (f / "train").rename(f / "test"),
    "name folder=.* and part=grids": lambda f: [path.rename(f / path.name) for path in (f / "train").iterdir()]
    and (f / "train").rmdir(),
    "are not a folder": lambda f: f.rename(f.parent / "away"),
    "vocab_size: Field required": lambda f: (f / "train" / "dataset.json").write_text('{"seq_len": 4}'),
    "dataset.json cannot be read": lambda f: (f / "train" / "dataset.json").write_text("{"),
    r"inputs.npy has shape \(6, 2\) and not \(6, 4\)": lambda f: save(f, "inputs", np.zeros((6, 2), np.uint8)),
    r"labels.npy has shape \(5, 4\) and not \(6, 4\)": lambda f: save(f, "labels", np.ones((5, 4), np.uint8)),
    "holds float64 and no integers": lambda f: save(f, "inputs", np.zeros((6, 4))),
    "is no array of numpy": lambda f: (f / "train" / "all__inputs.npy").write_bytes(b"PK"),
    "puzzle_indices.npy does not ascend from 0 to 6, the number of examples": lambda f: save(
        f, "puzzle_indices", np.array([0, 3, 4, 7])
    ),
    "group_indices.npy does not ascend from 0 to 3, the number of puzzles": lambda f: save(
        f, "group_indices", np.array([0, 4, 3])
    ),
    r"puzzle_identifiers.npy has shape \(2,\) and not \(3,\)": lambda f: save(
        f, "puzzle_identifiers", np.array([1, 2])
    ),
    "holds id 4, and dataset.json says num_puzzle_identifiers=4": lambda f: save(
        f, "puzzle_identifiers", np.array([1, 4, 2])
    ),
    "holds token 9 in example 2": lambda f: save(f, "inputs", np.pad([[1, 9]], ((2, 3), (1, 1)))),
    "holds token -1 in example 2": lambda f: save(f, "inputs", np.pad([[1, -1]], ((2, 3), (1, 1)))),
    "holds label 9 in example 1": lambda f: save(f, "labels", np.pad([[1, 9]], ((1, 4), (1, 1)))),
    "has no label that is scored": lambda f: save(f, "labels", np.zeros((6, 4), np.uint8)),
    "total_groups=3, and the files hold 2": lambda f: change(f, total_groups=3),
    "pad_id=9, which is not below vocab_size=9": lambda f: change(f, pad_id=9),
    "sequence_length=4 is not the length of .*train; use 2": lambda f: [
        change(f, seq_len=2), save(f, "inputs", np.ones((6, 2), int)), save(f, "labels", np.ones((6, 2), int))
    ],
}  # fmt: skip


@pytest.mark.parametrize("message", BROKEN)
def test_a_broken_folder_is_refused_in_one_line(folder: Path, message: str) -> None:
    BROKEN[message](folder)
    with pytest.raises(UserError, match=message) as error:
        RecordWindows(Records(folder=str(folder)), S)
    assert "\n" not in str(error.value)


def test_what_is_changed_after_it_was_opened_is_noticed(folder: Path) -> None:
    windows = RecordWindows(Records(folder=str(folder)), S)
    changed = np.lib.format.open_memmap(folder / "train" / "all__inputs.npy", mode="r+")
    changed[3, 2] = 200
    changed.flush()
    windows.read(np.array([0, 1, 2]))
    with pytest.raises(UserError, match="holds token 200 in example 3"):
        windows.read(np.array([5, 3]))


def test_sizes_inputs_and_labels_are_enough(folder: Path) -> None:
    for field in ("puzzle_identifiers", "puzzle_indices", "group_indices"):
        (folder / "train" / f"all__{field}.npy").unlink()
    (folder / "train" / "dataset.json").write_text('{"seq_len": 4, "vocab_size": 9}')
    windows = RecordWindows(Records(folder=str(folder)), S)
    batch = windows.read(np.arange(6))
    assert (windows.num_ids, batch["ids"].tolist()) == (1, [0] * 6)
    np.testing.assert_array_equal(batch["labels"], array(folder, "labels"))
    save(folder, "group_indices", np.arange(7))
    with pytest.raises(UserError, match=r"puzzle_identifiers\.npy is not there"):
        RecordWindows(Records(folder=str(folder)), S)
