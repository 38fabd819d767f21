"""The examples of a run are a function of the step, whatever reads them: the claims of `mixture`, by brute force."""

from collections import Counter
from dataclasses import replace
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from looplm.config.schema import Addition, Data, Source
from looplm.data.dataset import TokenDataset
from looplm.data.loader import _host_rows, train_loader
from looplm.data.mixture import Mixture, Part, open_mixture
from looplm.errors import UserError

S = 2
HOSTS = (1, 2, 3, 4, 8)


class Numbered:
    """Windows that say which source and number they have."""

    vocab_size, padding, num_ids = 1 << 30, 0.0, 0

    def __init__(self, source: int, size: int) -> None:
        self.source, self.size, self.fingerprint = source, size, f"{source} {size}"

    def __len__(self) -> int:
        return self.size

    def read(self, window_ids_B: np.ndarray) -> dict[str, np.ndarray]:
        rows = np.stack([np.full(len(window_ids_B), self.source), window_ids_B], axis=1).astype(np.int32)
        return dict.fromkeys(("tokens", "labels", "segments", "positions"), rows)


@st.composite
def mixtures(draw) -> Mixture:
    count = draw(st.integers(1, 4))
    weights = [draw(st.integers(1, 9)) for _ in range(count)]
    later = draw(st.none() | st.tuples(st.integers(1, 8), st.lists(st.integers(1, 9), min_size=count, max_size=count)))
    stages = {0: weights} | ({later[0]: later[1]} if later else {})
    seed = draw(st.integers(0, 2**32))
    parts = [
        Part(
            str(i),
            Numbered(i, draw(st.integers(1, 40))),
            {step: float(stage[i]) for step, stage in stages.items()},
            f"{seed}/{i}",
            draw(st.none() | st.integers(1, 3)),
        )
        for i in range(count)
    ]
    return Mixture(parts, batch_size=24 * draw(st.integers(1, 2)), sequence_length=S)


def rows(mixture: Mixture, start: int, stop: int, prefetch: int | None = None) -> list[tuple[int, int]]:
    """Source and window of every row of steps start..stop-1; through the loader when a prefetch is given."""
    if prefetch is None:
        batches = [mixture.batch(step, slice(0, mixture.batch_size)) for step in range(start, stop)]
    else:
        batches = list(islice(train_loader(mixture, start_step=start, prefetch=prefetch), stop - start))
    return [tuple(row) for batch in batches for row in batch["tokens"].tolist()]


def last_step(mixture: Mixture) -> int:
    """How many whole steps there are, at most 10."""
    end = mixture._schedule.end
    return 10 if end is None else min(10, end // mixture.batch_size)


@settings(max_examples=12, deadline=None)
@given(mixture=mixtures())
def test_every_host_count_reads_the_same(mixture: Mixture) -> None:
    stop = last_step(mixture)
    whole = rows(mixture, 0, stop)
    for hosts in HOSTS:
        slices = [_host_rows(mixture.batch_size, host, hosts) for host in range(hosts)]
        parts = [mixture.batch(step, part)["tokens"].tolist() for step in range(stop) for part in slices]
        assert [tuple(row) for part in parts for row in part] == whole


@settings(max_examples=8, deadline=None)  # a loader takes a fifth of a second to start and stop
@given(mixture=mixtures(), cut=st.integers(0, 10), prefetch=st.sampled_from([0, 1, 3]))
def test_every_start_and_every_number_of_threads_reads_the_same(mixture: Mixture, cut: int, prefetch: int) -> None:
    stop = last_step(mixture)
    cut = min(cut, stop)
    assert rows(mixture, cut, stop, prefetch) == rows(mixture, 0, stop)[cut * mixture.batch_size :]


@settings(max_examples=40, deadline=None)
@given(mixture=mixtures())
def test_every_window_is_read_once_an_epoch(mixture: Mixture) -> None:
    stop = last_step(mixture)
    read: dict[int, list[int]] = {i: [] for i in range(len(mixture.parts))}
    for source, window in rows(mixture, 0, stop):
        read[source].append(window)
    for i, part in enumerate(mixture.parts):
        size = len(part.windows)
        for start in range(0, len(read[i]), size):
            epoch = read[i][start : start + size]
            assert len(set(epoch)) == len(epoch)
        if part.max_epochs is not None:
            assert max(Counter(read[i]).values(), default=0) <= part.max_epochs
        metrics = mixture.progress(stop)
        if len(mixture.parts) > 1:
            assert metrics[f"data/tokens_{i}"] == len(read[i]) * S
            assert metrics[f"data/epochs_{i}"] == len(read[i]) / size
        else:
            assert metrics == {"data/epochs": len(read[i]) / size}


@settings(max_examples=40, deadline=None)
@given(mixture=mixtures())
def test_proportions_hold_in_every_prefix_of_a_stage(mixture: Mixture) -> None:
    if any(part.max_epochs for part in mixture.parts):
        return  # what happens then is told by test_schedule
    read = [0] * len(mixture.parts)
    start, before = 0, [0] * len(read)
    for n, (source, _) in enumerate(rows(mixture, 0, 10)):
        step = n // mixture.batch_size
        stage = max(begin for begin in mixture.parts[0].weights if begin <= step)
        if n == stage * mixture.batch_size:
            start, before = n, list(read)
        read[source] += 1
        weights = [Fraction(part.weights[stage]) for part in mixture.parts]
        for i, weight in enumerate(weights):
            assert abs(read[i] - before[i] - weight / sum(weights) * (n + 1 - start)) < 1


@settings(max_examples=10, deadline=None)
@given(mixture=mixtures())
def test_the_size_of_a_batch_cuts_the_same_stream(mixture: Mixture) -> None:
    parts = [replace(part, weights={0: part.weights[0]}) for part in mixture.parts]
    small = Mixture(parts, batch_size=6, sequence_length=S)
    large = Mixture(parts, batch_size=15, sequence_length=S)
    steps = min(10, (small._schedule.end or 150) // 30 * 2)
    assert rows(small, 0, 5 * steps // 2) == rows(large, 0, steps)


def test_what_is_mixed_with_a_source_changes_nothing_in_it() -> None:
    def order(*others: Part) -> list[int]:
        part = Part("a", Numbered(0, 50), {0: 1.0}, "7/a")
        mixture = Mixture([part, *others], batch_size=10, sequence_length=S)
        return [window for source, window in rows(mixture, 0, 40) if source == 0][:100]

    assert order() == order(Part("b", Numbered(1, 9), {0: 2.0}, "7/b"))


def data(*sources: Source, **changes) -> Data:
    return Data(train=sources, sequence_length=16, batch_tokens=128, **changes)


def test_opening_a_mixture_of_data_and_a_task(dataset: TokenDataset, tmp_path: Path) -> None:
    sources = (
        Source(name="text", data=str(dataset.path), weight=3),
        Source(name="sums", data=Addition(digits=2), weight={2: 1.0}),
    )
    mixture = open_mixture(data(*sources), seed=0)
    mixture.check(vocab_size=600, num_steps=100)
    assert [part.name for part in mixture.parts] == ["sums", "text"]
    assert mixture.progress(4) == {
        "data/tokens_sums": 4 * 16, "data/epochs_sums": 4 / 500_000,
        "data/tokens_text": 28 * 16, "data/epochs_text": 28 / len(mixture.parts[1].windows),
    }  # fmt: skip
    # How they are listed is nothing to them.
    again = open_mixture(data(*reversed(sources)), seed=0)
    np.testing.assert_array_equal(mixture.batch(3, slice(0, 8))["tokens"], again.batch(3, slice(0, 8))["tokens"])
    assert mixture.fingerprint == again.fingerprint
    assert mixture.is_what_was_read(mixture.fingerprint.split()[1], 2)
    assert not mixture.is_what_was_read(mixture.fingerprint.split()[1], 3)
    packed = open_mixture(data(*sources, packing="best_fit", cache_dir=str(tmp_path)), seed=0)
    assert packed.parts[1].windows.padding > 0
    with pytest.raises(UserError, match=r"model\.vocab_size=599 is below the 600 pieces"):
        mixture.check(vocab_size=599, num_steps=100)


def test_a_run_that_wants_more_than_there_is(dataset: TokenDataset) -> None:
    mixture = open_mixture(data(Source(name="a", data=str(dataset.path), max_epochs=0.5)), seed=0)
    steps = len(mixture.parts[0].windows) // 2 // 8
    mixture.check(vocab_size=600, num_steps=steps)
    with pytest.raises(UserError, match=rf"leaves examples for {steps} steps, and num_steps={steps + 1}"):
        mixture.check(vocab_size=600, num_steps=steps + 1)


def labelled(write_dataset, *documents: int) -> str:
    """The folder of a dataset of 100 documents of 16 tokens, of which these are learnt."""
    return str(write_dataset([16] * 100, masks=[[int(number in documents)] * 16 for number in range(100)]).path)


def test_every_source_must_have_something_to_learn(write_dataset, dataset: TokenDataset) -> None:
    none, one = labelled(write_dataset), labelled(write_dataset, 70)
    text = Source(name="text", data=str(dataset.path), weight={0: 1.0, 50: 0.0})

    def check(*sources: Source, num_steps: int = 60) -> None:
        open_mixture(data(*sources), seed=0).check(vocab_size=600, num_steps=num_steps)

    later = Source(name="later", data=none, weight={50: 1.0})
    with pytest.raises(UserError, match=r"^later of data.train has no label in its first 99 windows, so nothing"):
        check(text, later)
    check(text, later, num_steps=50)  # it is not read
    check(text, later.model_copy(update={"data": one}))
    with pytest.raises(UserError, match=r"^data.train \(.*\) has no label in its first 60 batches, so nothing would"):
        check(Source(name="alone", data=none))
    # Where all that is read has no label, though there are some.
    with pytest.raises(UserError, match=r"has no label in its first 1 batches"):
        check(Source(name="alone", data=one), num_steps=1)


def test_stages_begin_where_shares_change_and_where_a_source_runs_dry(dataset: TokenDataset) -> None:
    folder = str(dataset.path)
    sources = (
        Source(name="a", data=folder, weight={0: 1.0, 3: 0.5}),
        Source(name="b", data=folder, weight={3: 0.5}),
        Source(name="c", data=folder, weight={5: 1.0}, max_epochs=0.01),
    )
    mixture = open_mixture(data(*sources), seed=0)
    assert mixture.parts[2].limit == 31 * 4, "half of the rows of so many steps"
    end = 5 + 31
    stages = [mixture.stage(step) for step in range(end + 3)]
    assert [step for step in range(1, end + 3) if stages[step] != stages[step - 1]] == [3, 5, end]


def test_where_a_dataset_lies_is_no_part_of_what_was_read() -> None:
    a, b = Source(name="a", data="x", weight=0.5), Source(name="b", data=Addition(digits=2))
    assert data(a, b).read_before(9) == data(a.model_copy(update={"data": "elsewhere/x"}), b).read_before(9)
    assert data(a, b).read_before(9) != data(a, b.model_copy(update={"data": Addition(digits=3)})).read_before(9)
    assert data(a, b).read_before(9) != data(a, b.model_copy(update={"data": "x"})).read_before(9)


def test_history_is_what_decided_what_was_read() -> None:
    a, b = Source(name="a", data="x", weight=0.5), Source(name="b", data="y", weight=0.5)
    later = data(a, b.model_copy(update={"weight": {0: 0.5, 6: 2.0}}), Source(name="c", data="z", weight={6: 1.0}))
    assert data(a, b).read_before(6) == data(b, a).read_before(6) == later.read_before(6)
    assert data(a, b).read_before(7) != later.read_before(7)
    assert data(a).read_before(6) != data(a, b).read_before(6)
    assert data(a).read_before(6) != data(a.model_copy(update={"max_epochs": 2.0})).read_before(6)
