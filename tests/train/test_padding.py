"""Padding is no token: a padded batch gives the sums and the gradient of its rows without their padding."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from looplm.config.schema import Run
from looplm.data.window import IGNORED, PADDING
from looplm.model.functional import FunctionalLM
from looplm.train.batch import Batch
from looplm.train.depth import DepthSchedule
from looplm.train.step import build_loss

VOCAB = 40
ALIKE = ("0111122020200003", "1111110002220000")
"""Segments of two rows that hold as many tokens."""
UNLIKE = ("0111122020200003", "1100000000000000")
CHANGES = {
    "model.vocab_size": VOCAB,
    "model.attention": {"kind": "mixture", "num_experts": 3, "experts_per_token": 2, "entropy_weight": 0.1},
    "loop.depth": {"kind": "uniform", "max_loops": 3},
}


def experts(over: str, capacity_factor: float | None) -> dict[str, Any]:
    return {
        "kind": "moe", "num_experts": 5, "experts_per_token": 2, "expert_dim": 8, "loop_biases": 2,
        "capacity_factor": capacity_factor,
        "balance": {
            "bias_rate": 0.1, "auxiliary_weight": 0.5, "auxiliary_over": over, "entropy_weight": 0.5,
            "z_loss_weight": 0.1,
        },
    }  # fmt: skip


def padded(rows: Sequence[str]) -> Batch:
    """Random tokens of all vocabulary where there is padding too; a third of the labels is not scored."""
    segments_BS = np.array([list(map(int, row)) for row in rows], np.int32)
    kept_BS, rng = segments_BS != PADDING, np.random.default_rng(0)
    positions_BS = [[np.sum(row[:i] == row[i]) for i in range(len(row))] for row in segments_BS]
    labels_BS = rng.integers(0, VOCAB, segments_BS.shape)
    return Batch(
        tokens=rng.integers(0, VOCAB, segments_BS.shape),
        labels=np.where(kept_BS & (rng.random(segments_BS.shape) < 2 / 3), labels_BS, IGNORED),
        segments=segments_BS,
        positions=np.array(positions_BS),
        sequence=np.arange(len(rows)),
    )


def without_padding(batch: Batch, rows: slice) -> Batch:
    """The tokens of rows that hold as many each."""
    kept_BS = batch.segments[rows] != PADDING
    return jax.tree.map(
        lambda leaf: leaf[rows][kept_BS].reshape(len(kept_BS), -1) if leaf.ndim == 2 else leaf[rows], batch
    )


def computed(run: Run, batches: Sequence[Batch]) -> Any:
    """(gradient, sums) of all batches together."""
    lm = FunctionalLM(run.model)
    params = lm.init(jax.random.key(0))
    sums = build_loss(run, lm, DepthSchedule(run), dtype=jnp.float32)
    gradient = jax.jit(jax.grad(sums, has_aux=True))
    stand_ins, drawn = jax.tree.map(jnp.zeros_like, params), jnp.array([0, 2])
    found = [gradient(stand_ins, params, batch, None, drawn, jnp.int32(0)) for batch in batches]
    return jax.device_get(jax.tree.map(lambda *leaves: sum(leaves), *found))


@pytest.mark.parametrize(
    ("over", "capacity_factor", "rows"),
    [
        ("batch", 0.8, ALIKE),
        pytest.param("sequence", 0.8, UNLIKE, marks=pytest.mark.slow),
        pytest.param("model", None, ALIKE, marks=pytest.mark.slow),
    ],
    ids=["batch", "sequence", "model"],
)
def test_a_padded_batch_gives_what_its_tokens_give(
    tiny_run: Callable[..., Run], over: str, capacity_factor: float | None, rows: Sequence[str]
) -> None:
    run = tiny_run(**CHANGES | {"model.feed_forward": experts(over, capacity_factor)})
    batch = padded(rows)
    parts = [slice(b, b + 1) for b in range(len(rows))] if rows is UNLIKE else [slice(None)]
    found, expected = computed(run, [batch]), computed(run, [without_padding(batch, part) for part in parts])
    routers = found[1][0].routers.moe["block"]
    assert np.sum(routers.load_TLE[1:], axis=(1, 2)).tolist() == [2 * np.sum(batch.segments != PADDING)] * 2
    assert (routers.dropped > 0) == (capacity_factor is not None)
    assert routers.kept_T[2] > 0
    for (path, ours), wanted in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-4, atol=1e-5, err_msg=jax.tree_util.keystr(path))
