"""Passes from several first states are compared as if they were run one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from looplm.config.schema import (
    ConcatInjection,
    Data,
    Loop,
    Mesh,
    Model,
    NormalInit,
    NormalState,
    Optim,
    PHop,
    Run,
)
from looplm.data.held_out import open_held_out
from looplm.data.loader import eval_batches
from looplm.errors import UserError
from looplm.eval.first_states import check_first_states, measure_first_states
from looplm.eval.subject import Subject
from looplm.model.context import Context
from looplm.model.depth import Depth
from looplm.model.forward import Forward
from looplm.model.functional import FunctionalLM
from looplm.ops.attention import self_mask
from looplm.sharding.mesh import build_mesh

R, N = 2, 3


@pytest.fixture(scope="module")
def subject():
    task = PHop(num_examples=8, seed=1)
    model = Model(
        vocab_size=64, dim=16, num_heads=2, hidden_dim=16, block_layers=1, coda_layers=1, injection=ConcatInjection(),
        state_init=NormalState(std=0.5), init=NormalInit(std=0.4),
    )  # fmt: skip
    data = Data(train=task, validation=task, sequence_length=128, batch_tokens=1024)
    run = Run(num_steps=1, optim=Optim(learning_rate=1e-3), model=model, loop=Loop(num_loops=R), data=data)
    lm, mesh = FunctionalLM(model), build_mesh(Mesh(data=2), jax.devices()[:2])
    layout = jax.tree.map(lambda leaf: leaf.sharding, lm.abstract(mesh))
    params = jax.tree.map(jax.device_put, lm.init(jax.random.key(1)), layout)
    return Subject(run, lm, mesh, params, 5, False, open_held_out(task, run.data), 8, 1, None)


@pytest.mark.slow
def test_passes_are_compared_two_by_two(subject):
    found = measure_first_states(subject, N)
    (batch,) = eval_batches(subject.held_out.windows, batch_size=8, max_batches=1)
    batch = {name: jnp.asarray(array) for name, array in batch.items()}
    params = jax.device_get(subject.params)

    @jax.jit
    def passed(params, key, depth):
        model = subject.lm.bind(params)
        context = Context(
            batch["positions"], self_mask(subject.lm.config, batch["segments"]), key=key, sequence_B=jnp.arange(8)
        )
        output = Forward(model, batch["tokens"], context, Depth(R, depth), jnp.float32)()
        return output.state, jax.nn.log_softmax(model.logits(output.read[0]))

    scored_BS = np.asarray(batch["labels"]) >= 0
    keys = jax.random.split(jax.random.key(0), N)
    for depth in (1, 2):
        runs = [jax.device_get(passed(params, key, depth)) for key in keys]
        distance, divergence, agreement = [], [], []
        for i in range(N):
            for j in range(i):
                (a, log_a), (b, log_b) = runs[i], runs[j]
                distance.append((np.linalg.norm(a - b, axis=-1) / np.linalg.norm(a, axis=-1))[scored_BS].mean())
                both = [
                    (np.exp(x) * (x - y)).sum(axis=-1)[scored_BS].mean() for x, y in ((log_a, log_b), (log_b, log_a))
                ]
                divergence.append(np.mean(both))
                agreement.append((log_a.argmax(axis=-1) == log_b.argmax(axis=-1))[scored_BS].mean())
        labels = np.maximum(batch["labels"], 0)[..., None]
        nll = [-np.take_along_axis(log_p, labels, axis=-1)[..., 0][scored_BS].mean() for _, log_p in runs]
        assert found.state_distance[depth - 1] == pytest.approx(np.mean(distance), rel=1e-4)
        assert found.divergence[depth - 1] == pytest.approx(np.mean(divergence), rel=1e-3)
        assert found.agreement[depth - 1] == pytest.approx(np.mean(agreement))
        assert found.loss[depth - 1] == pytest.approx(np.mean(nll), rel=1e-5)
        assert found.loss_spread[depth - 1] == pytest.approx(np.std(nll, ddof=1), rel=1e-2)
    assert (found.num_tokens, found.num_states) == (scored_BS.sum(), N)


def test_a_first_state_that_is_not_drawn_cannot_be_compared():
    with pytest.raises(UserError, match=r"--first-states compares drawn .* model.state_init=input; leave it out"):
        check_first_states(Model(vocab_size=8, dim=8, num_heads=1, hidden_dim=8, block_layers=1), 4)
    with pytest.raises(UserError, match="at least 2"):
        check_first_states(
            Model(vocab_size=8, dim=8, num_heads=1, hidden_dim=8, block_layers=1, state_init=NormalState()), 1
        )
