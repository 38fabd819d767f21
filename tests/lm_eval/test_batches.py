"""Batches of few shapes that hold everything once."""

import numpy as np

from looplm.data.window import IGNORED
from looplm.lm_eval.batches import Shapes, batches
from looplm.lm_eval.encoding import Span


def test_every_span_is_there_once_with_its_targets() -> None:
    generator = np.random.default_rng(0)
    spans = []
    for _ in range(100):
        length = int(generator.integers(2, 202))
        spans.append(Span(tuple(generator.integers(1, 99, length).tolist()), int(generator.integers(1, length))))
    spans += [Span((*spans[7].ids[:-1], 99 + n), 1) for n in range(4)]
    shapes = Shapes(max_length=200, num_rows=10, multiple=4)
    seen, num_rows, found = set[tuple[int, ...]](), 0, dict[int, list[int]]()
    for batch in batches(spans, shapes):
        seen.add((*batch.tokens_BS.shape, batch.place_BM.shape[1]))
        num_rows += int((batch.length_B > 0).sum())
        for row, column in zip(*np.nonzero(batch.span_BM >= 0), strict=True):
            place, number = batch.place_BM[row, column], int(batch.span_BM[row, column])
            ids = spans[number].ids
            assert tuple(batch.tokens_BS[row, : batch.length_B[row]]) == ids[:-1]
            assert batch.label_BM[row, column] == ids[place + 1]
            found.setdefault(number, []).append(int(place))
        assert (batch.label_BM[batch.span_BM < 0] == IGNORED).all()
    # The last four share the row of the eighth.
    assert num_rows == 100
    assert found == {
        number: list(range(len(ids) - 1 - num_scored, len(ids) - 1)) for number, (ids, num_scored) in enumerate(spans)
    }
    assert {shape[:2] for shape in seen} <= {(12, 32), (12, 64), (12, 128), (12, 200)}
    assert {shape[2] for shape in seen} <= {8, 32, 64, 128, 200}


def test_rows_are_as_many_as_the_tokens_of_a_batch_allow() -> None:
    shapes = Shapes(max_length=3000)
    assert [(length, shapes.rows(length)) for length in map(shapes.length, (1, 33, 1000, 2049))] == [
        (32, 512),
        (64, 256),
        (1024, 16),
        (3000, 5),
    ]
    assert [shapes.targets(number, 200) for number in (1, 8, 9, 100, 129, 200, 201)] == [8, 8, 32, 128, 200, 200, 512]
