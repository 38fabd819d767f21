"""One pass over the held-out data scores every depth as separate runs would."""

import lzma
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import looplm
from looplm.config.schema import FinalCrossEntropy, Mesh
from looplm.data.dataset import TokenDataset
from looplm.data.held_out import HeldOut
from looplm.data.loader import eval_batches
from looplm.data.window import IGNORED, AllWindows
from looplm.errors import UserError
from looplm.eval.depth_sweep import depth_sweep, xz_bits_per_byte
from looplm.eval.sample import take_sample
from looplm.eval.score import Scorer, TokenScores
from looplm.eval.tally import Tally
from looplm.sharding.mesh import build_mesh


@pytest.fixture(scope="module")
def lm(finished_run):
    return looplm.load(finished_run)


@pytest.fixture(scope="module")
def held_out(lm):
    return TokenDataset.open(lm.run.data.validation)


@pytest.fixture(scope="module")
def score(lm):
    """Scores a batch with the run's weights, on eight devices."""
    return Scorer(lm.functional, build_mesh(Mesh(data=4, fsdp=2)), 5)


@pytest.fixture(scope="module")
def params(lm, score):
    layout = jax.tree.map(lambda leaf: leaf.sharding, lm.functional.abstract(score.mesh))
    return jax.tree.map(jax.device_put, lm.params, layout)


@pytest.fixture(scope="module")
def sweep(score, params):
    return partial(depth_sweep, score, params, batch_size=32, depths=(1, 3, 5), trained_depth=3, step=7)


@pytest.fixture(scope="module")
def result(sweep, held_out):
    return sweep(HeldOut.of(held_out, 64))


@pytest.mark.parametrize("depth", [1, 3, 5])
def test_loss_of_every_depth_equals_a_run_of_that_depth(depth, lm, held_out, result):
    loss = jax.jit(
        lambda tokens, labels: lm.loss_and_grads(tokens, labels, num_loops=depth, objective=FinalCrossEntropy())[0]
    )
    nats = tokens = 0.0
    for index in range(held_out.num_documents):
        start, stop = (int(x) for x in held_out.document_offsets[index : index + 2])
        stream = np.int32(held_out.tokens(start, stop))
        # A window boundary cuts a document's context: cut here as the loader does.
        for first in range(start - start % 64, stop, 64):
            piece = stream[max(first, start) - start : first + 65 - start]
            padded = np.full(66, -100, np.int32)
            padded[: len(piece)] = piece
            inputs, labels = np.maximum(padded[:-1], 0)[None], padded[1:].copy()[None]
            labels[0, max(len(piece) - 1, 0) :] = -100
            scored = int((labels >= 0).sum())
            nats += float(loss(jnp.asarray(inputs), jnp.asarray(labels))) * scored
            tokens += scored
    assert tokens == result.num_tokens == held_out.num_tokens - held_out.num_documents
    measured = result.loss[result.depths.index(depth)]
    assert measured == pytest.approx(nats / tokens, rel=1e-5)
    bits = result.bits_per_byte[result.depths.index(depth)]
    assert bits == pytest.approx(nats / math.log(2) / held_out.num_bytes, rel=1e-5)


def test_exits_and_accuracies_equal_those_of_the_model_itself(lm, held_out, result):
    """Token by token over the pieces of documents: who leaves where, by probabilities multiplied out."""

    @jax.jit
    def forward(tokens_BS):
        found = lm(tokens_BS, 5)
        return [found.logits(depth) for depth in (1, 2, 3, 5)], found.gate_logits_RBS

    exits, exit_nats, correct, total = np.zeros(4), 0.0, dict.fromkeys((1, 3, 5), 0), 0
    for piece in pieces(held_out, 64):
        padded = np.zeros((1, 65), np.int32)
        padded[0, : len(piece)] = piece
        logits_of, gates = forward(jnp.asarray(padded[:, :64]))
        logits_dSV, count = np.float64(logits_of)[:, 0], len(piece) - 1
        labels = piece[1:]
        nll_dS = np.log(np.exp(logits_dSV).sum(axis=-1))[:, :count] - logits_dSV[:, range(count), labels]
        leave_3S = 1 / (1 + np.exp(-np.float64(gates)[:3, 0, :count]))
        gone_S = np.cumsum([leave_3S[0], (1 - leave_3S[0]) * leave_3S[1]], axis=0)
        left_S = np.where(gone_S[0] >= 0.5, 1, np.where(gone_S[1] >= 0.5, 2, 3))
        exits += np.bincount(left_S, minlength=4)
        exit_nats += nll_dS[left_S - 1, range(count)].sum()
        for depth, index in ((1, 0), (3, 2), (5, 3)):
            correct[depth] += int((logits_dSV[index, :count].argmax(axis=-1) == labels).sum())
        total += count
    assert total == result.num_tokens
    np.testing.assert_allclose(result.exit_histogram, exits[1:] / total, atol=2 / total)
    assert result.expected_depth == pytest.approx(exits @ np.arange(4) / total, abs=4 / total)
    assert result.exit_loss == pytest.approx(exit_nats / total, rel=1e-4)
    np.testing.assert_allclose(result.accuracy, [correct[depth] / total for depth in result.depths], atol=2 / total)


def pieces(held_out, length):
    """Documents, cut where windows of so many tokens begin: what is read together, with the next token."""
    for index in range(held_out.num_documents):
        start, stop = (int(x) for x in held_out.document_offsets[index : index + 2])
        stream = np.int32(held_out.tokens(start, stop))
        for first in range(start - start % length, stop, length):
            piece = stream[max(first, start) - start : first + length + 1 - start]
            if len(piece) > 1:
                yield piece


def test_tokens_leave_before_the_last_loop_where_the_gate_says_so():
    """Two documents, of which one token is not scored; the trained depth is two of three loops."""
    tally = Tally(2, 3, exit_depth=2)
    nll_RBS = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
    batch = {
        "labels": np.array([[5, 6], [7, -100]]), "tokens": np.array([[1, 5], [2, 7]]),
        "documents": np.array([[0, 0], [1, 1]]),
    }  # fmt: skip
    nll_RBS[:, 1, 1] = 0
    gates_RBS = np.array([[[2.0, -2.0], [-0.1, 9.0]]] * 3, np.float32)
    correct_RBS = np.array([[[1, 0], [0, 0]], [[1, 1], [0, 0]], [[1, 1], [1, 0]]], bool)
    names = ("state_norm", "residual_rel", "update_cosine", "token_correlation")
    sums = {f"loop/{name}": np.array([3.0, 6.0, 9.0]) for name in names}
    scores = TokenScores(nll_RBS, correct_RBS, gates_RBS, sums)
    tally.add(batch, scores)
    np.testing.assert_array_equal(tally.exit_counts_R, [1, 2])
    assert tally.exit_nll == nll_RBS[0, 0, 0] + nll_RBS[1, 0, 1] + nll_RBS[1, 1, 0]
    np.testing.assert_array_equal(tally.nll_GR, [[1, 9, 17], [2, 6, 10]])
    np.testing.assert_array_equal(tally.tokens_G, [2, 1])
    np.testing.assert_array_equal(tally.correct_GR, [[1, 2, 2], [0, 0, 1]])
    means = tally.loop_means()
    assert means is not None
    assert means.state_norm == [1, 2, 3]
    leave_S = 1 / (1 + np.exp([-2.0, 2.0, 0.1]))
    np.testing.assert_allclose(means.exit_probability, [leave_S.mean(), 1 - leave_S.mean()], rtol=1e-6)


def test_the_sample_is_the_first_scored_document_of_a_batch(held_out):
    nll_RBS = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
    batch = {"labels": np.array([[-100, 6], [7, 8]]), "documents": np.array([[-1, 4], [4, 5]])}
    scores = TokenScores(nll_RBS, nll_RBS > 0, None, {})
    sample = take_sample(HeldOut.of(held_out, 64), batch, scores, (1, 3), np.array([[1, 2], [3, 1]]))
    assert sample.pieces == held_out.tokenizer().pieces(np.array([6, 7]))
    assert (sample.exit_depth, sample.loss) == ([2, 3], [5.0, 10.0])
    assert (sample.depths, sample.loss_by_depth) == ([1, 3], [[1.0, 2.0], [9.0, 10.0]])
    without = take_sample(HeldOut.of(held_out, 64), batch, scores, (1, 3), None)
    assert (without.exit_depth, without.loss, without.loss_by_depth) == (None, None, sample.loss_by_depth)
    nothing = {"labels": np.full((2, 2), -100)}
    assert take_sample(HeldOut.of(held_out, 64), batch | nothing, scores, (1, 3), None) is None


class OneDocument(AllWindows):
    """Windows in which all labels but those of one document are missing."""

    def __init__(self, dataset, sequence_length, number):
        super().__init__(dataset, sequence_length)
        self.number = number

    def read(self, window_ids_B):
        batch = super().read(window_ids_B)
        return batch | {"labels": np.where(batch["documents"] == self.number, batch["labels"], IGNORED)}


def test_windows_without_labels_are_no_part_of_a_score(held_out, score, params, sweep):
    """The last document alone: most windows have no label, and whole batches have none."""
    last = held_out.num_documents - 1
    whole, windows = Tally(held_out.num_documents, 5, None), OneDocument(held_out, 64, last)
    batches = list(eval_batches(windows, batch_size=32, max_batches=None))
    assert not (batches[0]["labels"] >= 0).any()
    for batch in eval_batches(AllWindows(held_out, 64), batch_size=32, max_batches=None):
        whole.add(batch, score(params, batch))
    found = sweep(HeldOut("last", windows, held_out.num_documents, None))
    assert (found.num_documents, found.num_tokens) == (1, whole.tokens_G[last])
    np.testing.assert_allclose(found.loss, whole.nll_GR[last, [0, 2, 4]] / whole.tokens_G[last], rtol=1e-6)
    assert sum(found.exit_histogram) == pytest.approx(1.0)


def test_held_out_data_without_a_label_is_refused(held_out, sweep):
    with pytest.raises(UserError, match=r"^held-out data none has no token with a label, so nothing can be scored"):
        sweep(HeldOut("none", OneDocument(held_out, 64, -9), held_out.num_documents, None))


def test_exits_are_a_distribution_over_the_trained_depth(result):
    assert len(result.exit_histogram) == 3
    assert sum(result.exit_histogram) == pytest.approx(1.0)
    assert 1 <= result.expected_depth <= 3


def test_gain_is_the_paired_difference(result):
    assert result.gain.nats == pytest.approx(result.loss[0] - result.loss[1], abs=1e-9)
    assert result.gain.low <= result.gain.nats <= result.gain.high


def test_change_against_the_trained_depth_is_paired(result):
    """At the trained depth it is exactly nothing; elsewhere it holds the difference of the losses."""
    trained = result.depths.index(3)
    assert result.change_low[trained] == result.change_high[trained] == 0
    for loss, low, high in zip(result.loss, result.change_low, result.change_high, strict=True):
        assert low <= loss - result.loss[trained] <= high


def test_sample_shows_text_of_the_first_document(result, held_out):
    text = held_out.tokenizer().decode(held_out.tokens(0, 65))
    assert "".join(result.sample.pieces).startswith(text[:40])
    assert len(result.sample.exit_depth) == len(result.sample.pieces) > 64, "it goes on over windows"
    assert result.sample.depths == [1, 3, 5]


def test_every_loop_is_measured(result):
    assert len(result.loops.state_norm) == len(result.loops.residual_rel) == 5
    assert result.loops.update_cosine[0] == 0
    assert sum(result.loops.exit_probability) == pytest.approx(1.0)
    assert len(result.loops.exit_probability) == 3


def test_yardstick_is_xz_on_the_same_bytes(held_out):
    text = "".join(
        held_out.tokenizer().decode(held_out.tokens(*(int(x) for x in held_out.document_offsets[i : i + 2])))
        for i in range(held_out.num_documents)
    ).encode()
    assert len(text) == held_out.num_bytes
    assert xz_bits_per_byte(HeldOut.of(held_out, 64)) == pytest.approx(
        8 * len(lzma.compress(text, preset=9)) / len(text)
    )


def test_spread_batches_cover_the_data_evenly(held_out):
    batches = list(eval_batches(AllWindows(held_out, 16), batch_size=8, max_batches=3))
    documents = {int(d) for batch in batches for d in np.unique(batch["documents"]) if d >= 0}
    assert len(batches) == 3
    assert max(documents) == held_out.num_documents - 1
