"""The prefix mask from labels to written text, against masks that are written out pair by pair; and gradients of inner
loops that grow."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from looplm.api import LoadedLM
from looplm.config.schema import FinalCrossEntropy, Loop, Model, NoInjection, NormalInit, TwoSpeedCore
from looplm.errors import UserError
from looplm.eval.score import Scorer
from looplm.infer.generate import generate
from looplm.lm_eval.batches import Batch
from looplm.lm_eval.score import DepthScorer
from looplm.model.context import Context
from looplm.model.depth import Depth
from looplm.model.forward import Forward
from looplm.model.functional import FunctionalLM
from looplm.ops.attention import Mask, prefix_of
from looplm.sharding.mesh import build_mesh
from looplm.train.depth import DepthSchedule
from looplm.train.program import Program

VOCAB, S, LOOPS = 29, 12, 2
CORE = {"kind": "two_speed", "inner_loops": 3, "inner_backprop": 3, "high_layers": 1}
CONFIG = Model(
    vocab_size=VOCAB, dim=16, num_heads=2, hidden_dim=24, block_layers=1, attention_mask="prefix",
    core=TwoSpeedCore(**CORE), injection=NoInjection(), init=NormalInit(std=0.3),
)  # fmt: skip
SEGMENTS = np.array([[1] * 6 + [2] * 6, [1] * 8 + [0] * 4], np.int32)
SCORED = {(0, 3), (0, 4), (0, 7), (0, 8), (0, 10)}
"""The second document of row 0 is a chat of two turns; that of row 1 is a question that the window cuts off."""
PREFIX = {(0, 0), (0, 1), (0, 2), (0, 3), (0, 6), (0, 7), *((1, s) for s in range(S))}


@pytest.fixture(scope="module")
def lm():
    return FunctionalLM(CONFIG)


@pytest.fixture(scope="module")
def params(lm):
    """Large ones: what is written depends on the prompt."""
    draw = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(draw.normal(0, 0.8, leaf.shape), jnp.float32), lm.shapes)


@pytest.fixture(scope="module")
def batch():
    """Two documents a row, or one and padding."""
    draw = np.random.default_rng(0)
    batch = {"tokens": draw.integers(0, VOCAB, (2, S)), "labels": np.full((2, S), -100), "segments": SEGMENTS}
    for b, s in SCORED:
        batch["labels"][b, s] = draw.integers(0, VOCAB)
    batch["positions"] = np.array([[*range(6), *range(6)], [*range(8), *[0] * 4]])
    return {name: array.astype(np.int32) for name, array in batch.items()}


def written_out(segments_BS, prefix):
    """Which keys every query sees, (B, S, S)."""
    seen = np.zeros((*segments_BS.shape, segments_BS.shape[1]), bool)
    for b, s, t in np.ndindex(seen.shape):
        seen[b, s, t] = segments_BS[b, s] == segments_BS[b, t] and (t <= s or (b, t) in prefix)
    return seen


def logits(lm, params, tokens_BS, positions_BS, seen_BSS, num_loops=LOOPS):
    mask = Mask("full", None, tokens_BS.shape[1], seen_BST=jnp.asarray(seen_BSS), backend="dense")
    model = lm.bind(params)
    context = Context(jnp.asarray(positions_BS), mask)
    read = Forward(model, jnp.asarray(tokens_BS), context, Depth(num_loops), jnp.float32)().read[0]
    return model.logits(read)


def loss(lm, params, batch):
    logits_BSV = logits(lm, params, batch["tokens"], batch["positions"], written_out(SEGMENTS, PREFIX))
    rows, places = map(np.array, zip(*SCORED, strict=True))
    labels = batch["labels"][rows, places]
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits_BSV[rows, places], labels))


def test_a_prefix_ends_with_the_token_before_the_answer(batch):
    prefix_BS = prefix_of(CONFIG, jnp.asarray(batch["labels"]), jnp.asarray(SEGMENTS))
    assert {(int(b), int(s)) for b, s in np.argwhere(prefix_BS)} == PREFIX
    causal = CONFIG.model_copy(update={"attention_mask": "causal"})
    assert prefix_of(causal, jnp.asarray(batch["labels"]), jnp.asarray(SEGMENTS)) is None


@pytest.mark.slow
def test_training_sees_prefixes_and_lets_the_gradient_of_inner_loops_grow(tiny_run, lm, batch):
    """On two devices: loss and norm of the gradient of three steps, the first of one inner loop."""
    changes = {
        "model.vocab_size": VOCAB, "model.dim": 16, "model.num_heads": 2, "model.hidden_dim": 24,
        "model.attention_mask": "prefix", "model.exit_gate": None, "model.core": CORE, "model.injection": "none",
        "model.init": {"kind": "normal", "std": 0.3}, "objective": "final", "loop.num_loops": LOOPS,
        "loop.inner_growth": {"steps": 2}, "data.train": {"kind": "addition"}, "data.validation": None,
        "data.sequence_length": S, "data.batch_tokens": 2 * S,
    }  # fmt: skip
    run = tiny_run(**changes)
    program = Program(run, build_mesh(run.mesh, jax.devices()[:2]))
    compiled, state = program.compile(), program.create_state()
    for step, trained in enumerate((1, 2, 3)):
        params = jax.device_get(state.params)
        core = TwoSpeedCore(**CORE | {"inner_backprop": trained})
        reference = FunctionalLM(run.model.model_copy(update={"core": core}))
        value, gradient = jax.jit(jax.value_and_grad(partial(loss, reference, batch=batch)))(params)
        state, output = compiled(state, batch, step)
        np.testing.assert_allclose(output.means["train/loss"], value, rtol=1e-5)
        np.testing.assert_allclose(output.means["train/grad_norm"], optax.tree.norm(gradient), rtol=1e-4)


@pytest.mark.parametrize(("steps", "shape"), [(7, "linear"), (50, "sqrt"), (1, "linear")])
def test_inner_loops_grow_as_loops_do(tiny_run, steps, shape):
    growth = {"steps": steps, "shape": shape}
    changes = {"num_steps": 60, "loop.num_loops": 3, "loop.backprop_growth": growth, "loop.inner_growth": growth}
    schedule = DepthSchedule(tiny_run(**changes | {"model.core": {**CORE, "inner_backprop": (0, 3)}}))
    grown = [int(schedule.inner_backprop(jnp.int32(step))) for step in range(60)]
    assert grown == [int(schedule.draw(step)[1]) for step in range(60)]


def test_every_depth_is_scored_with_prefixes(lm, params, batch, tiny_run):
    mesh = build_mesh(tiny_run().mesh, jax.devices()[:1])
    scores = Scorer(lm, mesh, LOOPS)(params, batch)
    rows, places = map(np.array, zip(*SCORED, strict=True))
    for depth in range(1, LOOPS + 1):
        arguments = batch["tokens"], batch["positions"], written_out(SEGMENTS, PREFIX), depth
        nll_BSV = -jax.nn.log_softmax(logits(lm, params, *arguments))
        expected = np.asarray(nll_BSV)[rows, places, batch["labels"][rows, places]]
        np.testing.assert_allclose(scores.nll_RBS[depth - 1][rows, places], expected, rtol=2e-5)

    length_B, label_BM = np.array([9, 6]), np.array([[4, 5, 6], [7, -100, -100]])
    asked = Batch(batch["tokens"], length_B, np.array([[5, 6, 7], [5, 0, 0]]), label_BM, np.zeros((2, 3), np.int32))
    nll_BM = DepthScorer(lm, params, mesh, [LOOPS])(asked).nll_TBM[0]
    segments_BS = (np.arange(S) < length_B[:, None]).astype(np.int32)
    seen = written_out(segments_BS, {(b, s) for b in range(2) for s in range(6)})
    expected_BSV = -jax.nn.log_softmax(logits(lm, params, batch["tokens"], np.tile(np.arange(S), (2, 1)), seen))
    for b, m in np.argwhere(label_BM != -100):
        np.testing.assert_allclose(nll_BM[b, m], expected_BSV[b, asked.place_BM[b, m], label_BM[b, m]], rtol=2e-5)


def test_what_is_written_sees_the_prompt_from_both_sides(lm, params):
    """With a cache, three prompts on two rows, against a pass over the whole text for every token."""
    prompts, num_new = [np.arange(1, 8), np.array([5]), np.arange(9, 28, 4)], 6
    written = generate(
        lm, params, prompts, num_loops=LOOPS, max_tokens=num_new, end_ids=[], num_ids=VOCAB, batch_size=2
    )
    longest = max(map(len, prompts)) + num_new
    call = jax.jit(partial(logits, lm))

    def continued(prompt, prefix):
        tokens_1S = np.zeros((1, longest), np.int32)
        tokens_1S[0, : len(prompt)] = prompt
        seen = written_out(np.ones((1, longest)), {(0, s) for s in range(len(prompt))} if prefix else set())
        for end in range(len(prompt), len(prompt) + num_new):
            logits_1SV = call(params, tokens_1S, np.arange(longest)[None], seen)
            tokens_1S[0, end] = jnp.argmax(logits_1SV[0, end - 1])
        return tokens_1S[0, len(prompt) : len(prompt) + num_new].tolist()

    ours = [row.tokens.tolist() for row in written]
    assert ours == [continued(prompt, True) for prompt in prompts]
    assert ours != [continued(prompt, False) for prompt in prompts], "the mask decides what is written"


def test_a_loaded_model_is_told_the_prefix(lm, params, batch):
    loaded = LoadedLM(CONFIG, Loop(num_loops=LOOPS), FinalCrossEntropy(), params)
    prefix_BS = prefix_of(CONFIG, jnp.asarray(batch["labels"]), jnp.asarray(SEGMENTS))
    ours = loaded(batch["tokens"], segments=SEGMENTS, prefix=prefix_BS).logits(LOOPS)
    positions_BS = np.tile(np.arange(S), (2, 1))
    expected = logits(lm, params, batch["tokens"], positions_BS, written_out(SEGMENTS, PREFIX))
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    causal = LoadedLM(CONFIG.model_copy(update={"attention_mask": "causal"}), loaded.loop, loaded.objective, params)
    with pytest.raises(UserError, match="attention_mask=causal looks at none"):
        causal(batch["tokens"], prefix=prefix_BS)
