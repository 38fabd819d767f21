"""What changes predictions at test time, against running whole prefixes again: contrast, step size, warm start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from looplm.config.schema import ConcatInjection, Model, NormalInit, NormalState
from looplm.infer.generate import Generation
from looplm.infer.items import Contrast
from looplm.infer.sampling import Sampling
from looplm.infer.schedule.depth_batching import DepthBatching
from looplm.infer.schedule.in_step import InStep
from looplm.model.context import Context
from looplm.model.depth import Depth
from looplm.model.forward import Forward
from looplm.model.functional import FunctionalLM
from looplm.ops.attention import self_mask

R, TOKENS = 4, 12
PROMPTS = [np.arange(1, 8), np.array([5, 9]), np.arange(9, 30, 2)]


@pytest.fixture(scope="module")
def built():
    lm = FunctionalLM(
        Model(
            vocab_size=59, dim=32, num_heads=4, hidden_dim=32, prelude_layers=1, block_layers=1,
            injection=ConcatInjection(), init=NormalInit(std=0.3), state_init=NormalState(),
        )
    )  # fmt: skip
    return lm, lm.init(jax.random.key(0))


def texts(built, *, scheduler=None, **options):
    generation = Generation(
        *built, PROMPTS, num_loops=R, max_tokens=TOKENS, sampling=Sampling(), num_ids=59, scheduler=scheduler, **options
    )
    rows = dict(generation)
    return [rows[number].tokens.tolist() for number in range(len(PROMPTS))]


def again(built, continued):
    """Greedy text, where `continued(forward, tokens, own_start)` gives the logits (S, V) of a whole prefix."""
    lm, params = built
    from looplm.infer.generate import streams

    positions_1S = jnp.arange(max(map(len, PROMPTS)) + TOKENS)[None]

    @jax.jit
    def predict(room, first, stream):
        key = jax.random.fold_in(jax.random.key(0), 0)
        context = Context(positions_1S, self_mask(lm.config, 0 * positions_1S), key=key, sequence_B=stream[None])
        return continued(lm.bind(params), room, context, first)

    def row(prompt, stream):
        # Of one length for all prompts, so that one program is compiled; nobody sees what follows.
        room, end = np.zeros(positions_1S.shape, np.int32), len(prompt) + TOKENS
        room[0, : len(prompt)] = prompt
        for position in range(len(prompt), end):
            room[0, position] = int(jnp.argmax(predict(room, jnp.int32(len(prompt)), stream)[position - 1]))
        return room[0, len(prompt) : end].tolist()

    return [row(prompt, stream) for prompt, stream in zip(PROMPTS, streams(PROMPTS, 0), strict=True)]


def test_the_last_loop_is_contrasted_with_an_earlier_one(built):
    def continued(model, room, context, _):
        early, late = (
            model.logits(Forward(model, room, context, Depth(depth), jnp.float32)().read[0])[0] for depth in (2, R)
        )
        return 2.5 * late - 1.5 * early

    expected = again(built, continued)
    assert texts(built, contrast=Contrast(2, 1.5)) == expected
    assert texts(built, contrast=Contrast(2, 1.5), draft="1:2") == expected
    assert texts(built) != expected


def test_a_step_goes_part_of_the_way(built):
    def continued(model, room, context, _):
        inputs, entered = model.enter(room, context, jnp.float32)
        state = model.core.init_state(inputs, context)
        for _ in range(R):
            state += 0.5 * (model.core.step(state, inputs, context, None)[0] - state)
        return model.logits(model.leave(state, context, entered)[0])[0]

    expected = again(built, continued)
    assert texts(built, step_size=0.5) == expected
    assert texts(built, step_size=0.5, scheduler=DepthBatching(), batch_size=2) == expected
    assert texts(built) != expected


def test_a_token_starts_from_the_last_state_of_the_one_before(built):
    def continued(model, room, context, first):
        inputs, _ = model.enter(room, context, jnp.float32)
        own_1SD = model.core.init_state(inputs, context)
        is_new_1S1 = (context.positions_BS >= first)[..., None]

        def once(_, start_1SD):
            last_1SD = Forward(model, room, context, Depth(R), jnp.float32, start=start_1SD)().state
            return jnp.where(is_new_1S1, jnp.roll(last_1SD, 1, axis=1), own_1SD)

        # Every turn makes one more position right, from the first new one on.
        start_1SD = jax.lax.fori_loop(0, TOKENS, once, own_1SD)
        return model.logits(Forward(model, room, context, Depth(R), jnp.float32, start=start_1SD)().read[0])[0]

    expected = again(built, continued)
    assert texts(built, warm_start=True) == expected
    assert texts(built, warm_start=True, scheduler=DepthBatching()) == expected
    assert texts(built, warm_start=True, scheduler=InStep(), batch_size=2) == expected
    assert texts(built) != expected
