"""What is hidden of a text: rates, lengths and limits, by counting and by brute force, and of which rows it depends."""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from looplm.config.schema import Data, Masking
from looplm.data.held_out import open_held_out
from looplm.data.masked import Masks, spans
from looplm.data.mixture import open_mixture
from looplm.data.window import IGNORED
from looplm.errors import UserError

MASK = 5000
DATA = {"sequence_length": 64, "batch_tokens": 64 * 12, "masking": Masking(mask_token=MASK)}


def reached(free: frozenset[int], budget: int, starts: list[tuple[int, int]]) -> frozenset[int]:
    """Return what is chosen when spans of (start, length) are laid one after the other."""
    chosen: set[int] = set()
    for start, length in starts:
        for place in range(start, start + length):
            if len(chosen) == budget or place in chosen or place not in free:
                break
            chosen.add(place)
    return frozenset(chosen)


def by_brute_force(runs: list[int], budget: int) -> dict[frozenset[int], Fraction]:
    """Return the probability of every choice of places: all orders of the starts, all lengths of up to 2 tokens."""
    from itertools import permutations, product

    found: Counter[frozenset[int]] = Counter()
    orders = list(permutations(range(len(runs))))
    for lengths in product((1, 2), repeat=len(runs)):
        probability = Fraction(1, len(orders))
        for length in lengths:
            probability *= Fraction(2, 3) if length == 1 else Fraction(1, 3)
        for order in orders:
            starts = []
            for start, length in zip(order, lengths, strict=True):
                if runs[start]:
                    crosses = length == 2 and (start + 1 == len(runs) or runs[start + 1] != runs[start])
                    starts.append((start, 1 if crosses else length))
            found[reached(frozenset(range(len(runs))), budget, starts)] += probability
    return found


def test_small_rows_are_hidden_as_often_as_brute_force_says():
    """Two documents of two places and one, and padding: a span ends at each of them."""
    runs, budget, draws = [1, 1, 2, 0], 2, 20_000
    rng, found = np.random.default_rng(0), Counter()
    for _ in range(draws):
        places = [place for span in spans(np.array(runs), budget, 2, rng) for place in span]
        assert len(set(places)) == len(places)
        found[frozenset(places)] += 1
    expected = by_brute_force(runs, budget)
    assert sum(expected.values()) == 1
    assert set(found) == set(expected)
    for choice, probability in expected.items():
        deviation = (probability * (1 - probability) / draws) ** 0.5
        assert found[choice] / draws == pytest.approx(float(probability), abs=4.5 * deviation)


def test_spans_are_as_long_as_one_over_n_and_fill_the_budget():
    rng, draws = np.random.default_rng(1), 6000
    first = Counter(len(next(spans(np.ones(100, int), 15, 3, rng))) for _ in range(draws))
    # A span of 2 or 3 is cut at the end of the row, in 1 or 2 of 100 starts.
    for length, weight in ((1, 6 + 0.03 + 0.02), (2, 3 - 0.03 + 0.02), (3, 2 - 0.04)):
        assert first[length] / draws == pytest.approx(weight / 11, abs=4.5 * (0.25 / draws) ** 0.5)
    for budget in (0, 1, 15, 100):
        assert sum(map(len, spans(np.ones(100, int), budget, 3, rng))) == budget


def test_chosen_places_show_the_mask_any_token_or_what_was_there():
    rng = np.random.default_rng(2)
    tokens_BS = rng.integers(100, 200, (400, 200)).astype(np.int32)
    tokens_BS[:, ::7] = 1
    segments_BS = np.ones_like(tokens_BS)
    segments_BS[:, 150:] = 2
    segments_BS[:, 190:] = 0
    batch = {"tokens": tokens_BS, "labels": tokens_BS, "segments": segments_BS, "positions": tokens_BS}
    config = Masking(mask_token=MASK, never=(1,))
    hidden = Masks(config, 100).hidden(batch, [(3, row) for row in range(400)])

    chosen_BS = hidden["labels"] != IGNORED
    may_BS = (segments_BS > 0) & (tokens_BS != 1)
    assert not (chosen_BS & ~may_BS).any()
    np.testing.assert_array_equal(chosen_BS.sum(1), np.round(0.15 * may_BS.sum(1)))
    np.testing.assert_array_equal(hidden["labels"][chosen_BS], tokens_BS[chosen_BS])
    np.testing.assert_array_equal(hidden["tokens"][~chosen_BS], tokens_BS[~chosen_BS])
    shown_N, was_N = hidden["tokens"][chosen_BS], tokens_BS[chosen_BS]
    for share, there_N in ((0.8, shown_N == MASK), (0.1, shown_N < 100), (0.1, shown_N == was_N)):
        assert there_N.mean() == pytest.approx(share, abs=4.5 * (share * (1 - share) / shown_N.size) ** 0.5)
    assert len(np.unique(shown_N[shown_N < 100])) == 100
    assert batch["tokens"] is tokens_BS
    assert (tokens_BS != MASK).all()


def test_what_is_hidden_depends_on_the_seed_the_step_and_the_row(dataset):
    """The parts of hosts are those of the whole batch, and a step is the same whatever was read before."""
    data = Data(train=str(dataset.location), **DATA)
    mixture, plain = (open_mixture(of, seed=4) for of in (data, data.model_copy(update={"masking": None})))
    whole, unhidden = mixture.batch(7, slice(0, 12)), plain.batch(7, slice(0, 12))
    chosen_BS = whole["labels"] != IGNORED
    np.testing.assert_array_equal(whole["labels"][chosen_BS], unhidden["tokens"][chosen_BS])
    assert (whole["tokens"] != unhidden["tokens"])[chosen_BS].mean() > 0.8
    for hosts in (2, 4):
        parts = [
            open_mixture(data, seed=4).batch(7, slice(12 // hosts * host, 12 // hosts * (host + 1)))
            for host in range(hosts)
        ]
        for name, value in whole.items():
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), value)
    row = mixture.masks.hidden({name: value[:1] for name, value in unhidden.items()}, [(1, 4, 7, 0)])
    np.testing.assert_array_equal(row["labels"], whole["labels"][:1])
    others = [(1, 5, 7, 0), (1, 4, 8, 0), (1, 4, 7, 1)]
    again = mixture.masks.hidden({name: value[[0, 0, 0]] for name, value in unhidden.items()}, others)
    assert all((labels != row["labels"][0]).any() for labels in again["labels"])


def test_held_out_windows_are_always_hidden_in_the_same_way(dataset, write_dataset):
    data = Data(train="elsewhere", **DATA)
    held_out = open_held_out(str(dataset.location), data)
    together = held_out.windows.read(np.arange(6))
    for window in range(6):
        for name, value in held_out.windows.read(np.array([window])).items():
            np.testing.assert_array_equal(value[0], together[name][window])
    assert (together["labels"] != IGNORED).any()
    assert held_out.tokens_per_byte is None, "hidden tokens are no text that is coded one by one"
    assert (
        held_out.windows.fingerprint
        != open_held_out(str(dataset.location), Data(train="x", **DATA | {"masking": None})).windows.fingerprint
    )
    learnt = write_dataset([200], masks=[[1] * 200])
    for opened in (
        lambda: open_held_out(str(learnt.location), data),
        lambda: open_mixture(data.model_copy(update={"train": str(learnt.location)}), seed=0),
    ):
        with pytest.raises(UserError, match=r"data\.masking chooses what is learnt among all tokens"):
            opened()
