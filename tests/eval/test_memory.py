"""Held-out text is scored with a memory: against one pass in which every token has its own list of whom it sees."""

from dataclasses import replace
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from looplm.config.schema import LearnedPositions, Mesh
from looplm.data.dataset import TokenDataset
from looplm.data.held_out import HeldOut
from looplm.data.window import IGNORED
from looplm.errors import UserError
from looplm.eval.depth_sweep import depth_sweep
from looplm.eval.exit_choice import parse_swept
from looplm.eval.memory import check_memory, measure_memory
from looplm.eval.score import Scorer
from looplm.eval.subject import Subject
from looplm.infer.cache import usual_kv
from looplm.model.context import Context
from looplm.model.depth import Depth
from looplm.model.forward import Forward
from looplm.model.functional import FunctionalLM
from looplm.ops.attention import self_mask
from looplm.sharding.mesh import build_mesh

R, S, M, ROWS = 2, 16, 12, 64
"""M is less than a window, and LONG more than two."""
LONG = 40


def memory_run(tiny_run, loops="all"):
    return tiny_run(
        **{"data.order": "streams", "model.memory": {"length": M, "loops": loops}, "loop.num_loops": R, "model.dim": 16,
           "model.init.std": 0.5, "data.batch_tokens": ROWS * S}
    )  # fmt: skip


@pytest.fixture(scope="module", params=["all", "last"])
def subject(request, tiny_run):
    """On two devices, the first three batches of the held-out text."""
    run = memory_run(tiny_run, request.param)
    lm, mesh = FunctionalLM(run.model), build_mesh(Mesh(data=2), jax.devices()[:2])
    layout = jax.tree.map(lambda leaf: leaf.sharding, lm.abstract(mesh))
    params = jax.tree.map(jax.device_put, lm.init(jax.random.key(1)), layout)
    dataset = TokenDataset.open(run.data.validation)
    return Subject(run, lm, mesh, params, 5, False, HeldOut.of(dataset, S), ROWS, 3, None)


class Expected:
    """The first windows of every stream, each stream in one pass: who sees whom is written out pair by pair."""

    def __init__(self, subject):
        self.subject, dataset = subject, subject.held_out.dataset
        steps = -(-len(subject.held_out.windows) // ROWS)
        self.T = min(subject.max_batches, steps) * S
        place_NT = np.arange(ROWS)[:, None] * steps * S + np.arange(self.T)
        stream, offsets = dataset.tokens(0, dataset.num_tokens), dataset.document_offsets
        there_NT = place_NT < dataset.num_tokens
        self.tokens_NT = np.where(there_NT, stream[place_NT.clip(0, len(stream) - 1)], 0).astype(np.int32)
        self.document_NT = np.where(there_NT, np.searchsorted(offsets, place_NT, side="right") - 1, -1)
        following_NT = np.searchsorted(offsets, place_NT + 1, side="right") - 1
        self.scored_NT = there_NT & (place_NT + 1 < len(stream)) & (following_NT == self.document_NT)
        self.label_NT = stream[(place_NT + 1).clip(0, len(stream) - 1)].astype(np.int32)
        starts_NT = np.maximum(offsets[self.document_NT.clip(0)].astype(np.int64), place_NT[:, :1])
        self.context_NT = place_NT - starts_NT

    def nll(self, length, num_loops):
        """Loss of every token at this depth, (N, T), under a memory of `length` tokens before every window."""
        lm, t = self.subject.lm, np.arange(self.T)
        model = lm.bind(jax.device_get(self.subject.params))
        near_TT = (t[None] <= t[:, None]) & (t[None] >= (t[:, None] // S) * S - length)
        seen_NTT = near_TT & (self.document_NT[:, :, None] == self.document_NT[:, None, :])
        mask = self_mask(lm.config, jnp.asarray(self.document_NT))
        mask = replace(mask, seen_BST=jnp.asarray(seen_NTT), backend="dense")
        context = Context(jnp.broadcast_to(jnp.arange(self.T), self.tokens_NT.shape), mask)
        hidden = Forward(model, jnp.asarray(self.tokens_NT), context, Depth(num_loops), jnp.float32)().read[0]
        log_p = jax.nn.log_softmax(model.logits(hidden))
        nll_NT = -jnp.take_along_axis(log_p, jnp.asarray(self.label_NT)[..., None], axis=-1)[..., 0]
        return np.where(self.scored_NT, nll_NT, 0)


@pytest.fixture(scope="module")
def expected(subject):
    return Expected(subject)


def scored(subject):
    """(losses (R, N, T), the labels (N, T)) of all batches, joined into streams."""
    score, kept, nll, labels = Scorer(subject.lm, subject.mesh, R), None, [], []
    for batch in subject.held_out.batches(batch_size=ROWS, max_batches=subject.max_batches, in_streams=True):
        scores = score(subject.params, batch, kept)
        kept = scores.kept
        nll.append(scores.nll_RBS)
        labels.append(batch["labels"])
    return np.concatenate(nll, axis=2), np.concatenate(labels, axis=1)


def test_every_depth_is_one_pass_with_a_band(subject, expected):
    """A loop's own memory is that pass at every depth; a memory of the last loop is at depth 1, where it is its own."""
    nll_RNT, labels_NT = scored(subject)
    np.testing.assert_array_equal(labels_NT != IGNORED, expected.scored_NT)
    same = R if subject.run.model.memory.loops == "all" else 1
    for depth in range(1, same + 1):
        np.testing.assert_allclose(nll_RNT[depth - 1], expected.nll(M, depth), atol=2e-4)
    assert np.abs(nll_RNT[0] - expected.nll(0, 1)).max() > 1e-2
    if same < R:
        assert np.abs(nll_RNT[1] - expected.nll(M, R)).max() > 1e-2


def test_lengths_and_context(subject, expected):
    found = measure_memory(subject, check_memory(subject.run, [LONG]))
    assert [one.length for one in found.memories] == [0, M, LONG]
    tokens, kinds = expected.scored_NT.sum(), expected.context_NT[expected.scored_NT]
    assert found.num_tokens == tokens
    edges = [*found.context, 10**9]
    assert edges[:4] == [0, 1, 2, 4]
    inside = [(kinds >= low) & (kinds < high) for low, high in pairwise(edges)]
    assert found.context_tokens == [int(bin.sum()) for bin in inside]
    assert found.context[-1] >= S
    exact = [0, M, LONG] if subject.run.model.memory.loops == "all" else [0]
    for one in found.memories:
        if one.length in exact:
            nll = expected.nll(one.length, R)[expected.scored_NT]
            assert one.loss == pytest.approx(nll.mean(), abs=2e-5)
            np.testing.assert_allclose(one.loss_by_context, [nll[bin].mean() for bin in inside], atol=2e-4)
        assert one.change == pytest.approx(one.loss - found.memories[0].loss, abs=1e-6)
        assert (one.change == 0) == (one.length == 0)


def test_a_sweep_has_the_memory(subject, expected):
    """Which is what evaluations in training call."""
    score = Scorer(subject.lm, subject.mesh, R)
    result = depth_sweep(
        score, subject.params, subject.held_out, batch_size=ROWS, depths=(1, R), trained_depth=R, step=5,
        max_batches=subject.max_batches,
    )  # fmt: skip
    assert result.loss[0] == pytest.approx(expected.nll(M, 1).sum() / expected.scored_NT.sum(), abs=2e-5)


def test_all_windows_are_read_once(subject):
    whole, S_ = subject.held_out, subject.held_out.windows.sequence_length
    read = list(whole.batches(batch_size=24, in_streams=True))
    tokens = np.concatenate([batch["tokens"] for batch in read], axis=1).reshape(-1)
    held = np.concatenate([batch["segments"] for batch in read], axis=1).reshape(-1) > 0
    np.testing.assert_array_equal(tokens[held], whole.dataset.tokens(0, whole.dataset.num_tokens))
    assert len(read) * 24 * S_ >= held.sum() > (len(read) - 1) * 24 * S_


def test_what_cannot_be_measured(tiny_run):
    with pytest.raises(UserError, match="--memory=-1"):
        check_memory(memory_run(tiny_run), [-1])
    with pytest.raises(UserError, match=r"--memory=8 .* model.memory=null"):
        check_memory(tiny_run(), [8])
    assert check_memory(tiny_run(), [0]) == [0]
    with pytest.raises(UserError, match=r"memory\.loops=last every depth has a memory"):
        parse_swept(["kl"], memory_run(tiny_run, "last"))
    assert parse_swept(["kl"], memory_run(tiny_run)) == {"kl": None}


def test_without_a_memory_windows_are_alone(tiny_run):
    """Positions begin at 0 in every window, which a learned table of S positions needs."""
    run = tiny_run(**{"model.positions": LearnedPositions(length=S).model_dump(), "data.batch_tokens": ROWS * S})
    lm, mesh = FunctionalLM(run.model), build_mesh(Mesh(), jax.devices()[:1])
    params, held_out = lm.init(jax.random.key(1)), HeldOut.of(TokenDataset.open(run.data.validation), S)
    whole = Subject(run, lm, mesh, params, 5, False, held_out, ROWS, None, None)
    plain = depth_sweep(
        Scorer(lm, mesh, 3), params, held_out, batch_size=ROWS, depths=(3,), trained_depth=3, step=5
    )  # fmt: skip
    (one,) = measure_memory(whole, [0]).memories
    assert one.loss == pytest.approx(plain.loss[0], abs=1e-6)


def test_a_memory_of_the_last_loop_writes_with_keys_of_the_last(tiny_run):
    last, every = (memory_run(tiny_run, loops).model for loops in ("last", "all"))
    assert usual_kv(last, None, R) == "last"
    assert usual_kv(last, "last,int8", R) == "last,int8"
    assert usual_kv(every, None, R) is None
    assert usual_kv(every, "each", R) == "each"
    for refused in ("each", "ragged", "first", "ring:2"):
        with pytest.raises(UserError, match=rf"kv={refused} .*\.loops=last"):
            usual_kv(last, refused, R)
