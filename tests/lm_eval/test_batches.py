"""Batches of few shapes that hold everything once."""

import numpy as np

from looplm.data.window import IGNORED
from looplm.lm_eval.batches import Shapes, batches
from looplm.lm_eval.encoding import Span


def test_every_span_is_there_once_with_its_labels() -> None:
    generator = np.random.default_rng(0)
    spans = []
    for _ in range(100):
        length = int(generator.integers(2, 202))
        spans.append(Span(tuple(generator.integers(1, 99, length).tolist()), int(generator.integers(1, length))))
    shapes, seen, found = Shapes(max_length=200, num_rows=10, multiple=4), set(), []
    for batch in batches(spans, shapes):
        seen.add(batch.tokens_BS.shape)
        for row, number in enumerate(batch.numbers):
            end = batch.length_B[row]
            ids = (*batch.tokens_BS[row, :end], batch.labels_BS[row, end - 1])
            scored = batch.labels_BS[row] != IGNORED
            assert ids == spans[number].ids
            assert np.flatnonzero(scored).tolist() == list(range(end - spans[number].num_scored, end))
            assert (batch.labels_BS[row, scored] == ids[-spans[number].num_scored :]).all()
            found.append(number)
        assert (batch.length_B[len(batch.numbers) :] == 0).all()
        assert (batch.labels_BS[len(batch.numbers) :] == IGNORED).all()
    assert sorted(found) == list(range(100))
    assert seen <= {(12, 32), (12, 64), (12, 128), (12, 200)}


def test_rows_are_as_many_as_the_tokens_of_a_batch_allow() -> None:
    shapes = Shapes(max_length=3000)
    assert [(length, shapes.rows(length)) for length in map(shapes.length, (1, 33, 1000, 2049))] == [
        (32, 512),
        (64, 256),
        (1024, 16),
        (3000, 5),
    ]
