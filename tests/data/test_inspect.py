from itertools import pairwise
from pathlib import Path

import pytest

from looplm.data.build.bar import line
from looplm.data.build.report import Progress
from looplm.data.dataset import TokenDataset
from looplm.data.inspect import describe
from looplm.errors import UserError


def test_counts_lengths_and_samples(dataset: TokenDataset) -> None:
    lines = ["".join(told) for told in describe(dataset.path, 2, verify=True)]
    text = "\n".join(lines)
    assert f"{dataset.num_documents} documents, {dataset.num_tokens} tokens" in lines[0]
    histogram = [row for row in lines if row.startswith("  from")]
    assert sum(int(row.split()[2]) for row in histogram) == dataset.num_documents
    bounds = [int(place) for place in dataset.document_offsets]
    lengths = [stop - start for start, stop in pairwise(bounds)]
    for row in histogram:
        low = int(row.split()[1].rstrip(":"))
        assert int(row.split()[2]) == sum(low <= length < 2 * low for length in lengths)
    shown = [row for row in lines if row.startswith("document ")]
    assert shown[0].startswith(f"document 0, __init__.py:1, {lengths[0]} tokens: '# Copyright")
    assert shown[1].startswith(f"document {dataset.num_documents - 1}, utils.py:1, ")
    assert f"verified: the digests of {len(dataset.manifest.files)} files are right" in text
    assert "skipped in the build: 1 empty" in text


def test_loss_masks_and_ids_without_a_tokenizer_are_told(write_dataset) -> None:
    path = write_dataset([4, 4], masks=[[0, 0, 1, 1], [0, 1, 1, 1]]).path
    lines = [told.line for told in describe(path, 0, verify=False)]
    assert "loss on answers only: 5 tokens, 62.5%" in lines
    assert not any(row.startswith("document ") for row in lines)


def test_what_is_no_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere is not a folder"):
        list(describe(tmp_path / "nowhere", 3, verify=False))


def test_the_line_of_a_progress_bar() -> None:
    state = Progress("encoding", 3, 12, 60_000_000, 180_000_000, 15_000_000, 10.0, 12_000_000, 40_000_000)
    assert line(state) == "3/12 files, 60/180 MB, 1.20 M tokens/s, 0:00:30 left"
    state = Progress("writing", 12, 12, 9, 9, 15_000_000, 10.0, 6_000_000, 9)
    assert line(state) == "6.0 of 15.0 M tokens"
