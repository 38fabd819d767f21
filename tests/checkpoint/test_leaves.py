"""Which arrays are named as damaged, how many of them, and what is set aside."""

from pathlib import Path

import pytest

from looplm.checkpoint import folder as names
from looplm.checkpoint.leaves import damaged_leaves
from looplm.checkpoint.reader import CheckpointReader, _affected
from looplm.checkpoint.seal import Damaged, read_seal
from tests.checkpoint.conftest import assert_equal, noise
from tests.checkpoint.test_writer import save


def test_only_items_that_are_asked_for_are_read(writer_of, small, tmp_path: Path) -> None:
    save(writer_of(), noise(small, 0), 1)
    folder = tmp_path / "checkpoints/1"
    seal = read_seal(folder)
    arrays = {
        item: {n: a.model_copy(update={"digest": "1" * 16}) for n, a in of.items()} for item, of in seal.arrays.items()
    }
    other = seal.model_copy(update={"arrays": arrays})
    assert damaged_leaves(folder, seal) == []
    assert damaged_leaves(folder, other, ("params",)) == ["params core.kernel", "params head"]
    assert len(damaged_leaves(folder, other)) == 4


def test_leaves_that_are_left_out_are_not_wanted(writer_of, small, tmp_path: Path) -> None:
    trees = noise(small, 0)
    save(writer_of(), trees, 1)
    restored = CheckpointReader(tmp_path / "checkpoints").restore(
        {"params": small["params"] | {"core": {"kernel": ...}}}
    )
    assert_equal(restored.trees["params"]["head"], trees["params"]["head"])


@pytest.mark.parametrize(
    ("leaves", "said"),
    [
        ([], ", which affects no array"),
        (["a", "b", "c"], ", which affects a, b, c"),
        (["a", "b", "c", "d", "e"], ", which affects a, b, c and 2 more"),
    ],
)
def test_a_few_leaves_are_named_and_the_rest_counted(leaves: list[str], said: str) -> None:
    assert _affected(leaves) == said


def test_what_is_set_aside_keeps_its_files_and_takes_the_place_of_what_was(tmp_path: Path) -> None:
    for content in ("first", "second"):
        (tmp_path / "5").mkdir()
        (tmp_path / "5/file").write_text(content)
        names.set_aside(tmp_path, 5)
        assert [path.name for path in tmp_path.iterdir()] == ["5.damaged"]
        assert (tmp_path / "5.damaged/file").read_text() == content


def test_the_place_of_a_checkpoint_is_where_its_link_leads(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "1").mkdir()
    (tmp_path / "2").symlink_to("elsewhere")
    (tmp_path / "3").symlink_to("nowhere")
    assert names.place_of(tmp_path, 1) == tmp_path / "1"
    assert names.place_of(tmp_path, 2) == (tmp_path / "elsewhere").resolve()
    with pytest.raises(Damaged, match="it is a link to nowhere, which is not there"):
        names.place_of(tmp_path, 3)
