"""Order, parts and copies of documents, against what they are meant to be."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from looplm.data import place
from looplm.data.build import assemble, plan
from looplm.data.dataset import TokenDataset
from looplm.data.formats import jsonl, read
from looplm.data.index import permute
from looplm.data.tokenizer import Tokenizer
from looplm.data.writer import build_dataset


@pytest.fixture
def build(tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Builds 300 short documents in many units; returns their texts by part."""
    monkeypatch.setattr(read, "_BLOCK_BYTES", 1500)
    monkeypatch.setattr(jsonl, "PIECE_BYTES", 1500)
    monkeypatch.setattr(plan, "_GROUP_BYTES", 5000)
    monkeypatch.setattr(assemble, "_MAX_DOCUMENTS", 17)
    monkeypatch.setattr(assemble, "_MAX_TOKENS", 60)
    monkeypatch.setattr(place, "_MAX_OPEN", 3)
    (tmp_path / "in").mkdir()
    for number in range(6):
        rows = [{"text": f"document {i} {'y' * (i % 40)}"} for i in range(50 * number, 50 * number + 50)]
        (tmp_path / f"in/{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "in/copies.jsonl").write_text((tmp_path / "in/3.jsonl").read_text())

    def run(*parts: str, **options) -> list[list[str]]:
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        build_dataset([tmp_path / "in"], tokenizer.path, out, num_workers=1, **options)
        return [texts(TokenDataset.open(out / part)) for part in parts or (".",)]

    return run


def texts(dataset: TokenDataset) -> list[str]:
    dataset.verify()
    bounds = [int(place) for place in dataset.document_offsets]
    found = [dataset.tokenizer().decode(dataset.tokens(start, stop)) for start, stop in pairwise(bounds)]
    lines = [json.loads(line)["name"] for line in (dataset.path / "sources.jsonl").read_text().splitlines()]
    for text, (source, record) in zip(found, dataset.document_sources.tolist(), strict=True):
        number = int(text.split()[1])
        assert record == number % 50
        assert lines[source] in (f"{number // 50}.jsonl", "copies.jsonl")
    assert dataset.document_bytes.tolist() == [len(text) for text in found]
    return found


def test_without_options_the_order_is_that_of_the_input(build) -> None:
    (found,) = build()
    expected = [f"document {i} {'y' * (i % 40)}" for i in range(300)]
    assert found == expected + expected[150:200]


def test_a_shuffle_is_the_permutation_of_its_seed(build) -> None:
    (plain,), (one,), (two,) = build(), build(shuffle_seed=1), build(shuffle_seed=2)
    assert one == [plain[place] for place in permute(np.arange(350), 350, 1).tolist()]
    assert sorted(one) == sorted(two) == sorted(plain)
    assert one != two


def test_copies_are_left_out_but_for_the_first(build) -> None:
    (plain,), (once,) = build(), build(dedup=True)
    assert once == plain[:300]


def test_all_at_once(build) -> None:
    train, held_out = build("train", "validation", dedup=True, shuffle_seed=5, validation_fraction=0.25)
    assert sorted(train + held_out) == sorted(f"document {i} {'y' * (i % 40)}" for i in range(300))
    assert 45 <= len(held_out) <= 105  # of 75, with a standard deviation of 7.5
    (whole,) = build()
    assert train != [text for text in whole if text in set(train)]
