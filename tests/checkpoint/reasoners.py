"""The fixtures of HRM, TRM and URM: what they recorded, and their gradients."""

from functools import cache

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

import looplm
from looplm.model.two_speed import States

STEPS = (1, 2, 3, 4)


@cache
def loaded(folder, dtype="float32"):
    return looplm.load(folder, dtype=dtype), dict(np.load(folder / "io.npz"))


def carried(io, place):
    """The state in a carry."""
    if f"{place}/current_hidden" in io:
        return jnp.asarray(io[f"{place}/current_hidden"])
    return States(jnp.asarray(io[f"{place}/z_H"]), jnp.asarray(io[f"{place}/z_L"]))


def rows_in_work(io, step):
    """The rows of a segment: those of the batch where the row before has halted; and which they are."""
    halted_B = io[f"step{step}/carry_in/halted"]
    rows = {}
    for name in ("inputs", "labels", "puzzle_identifiers"):
        new, old = io[f"batch{step}/{name}"], io[f"step{step}/carry_in/data_{name}"]
        rows[name] = jnp.asarray(np.where(halted_B.reshape(-1, *[1] * (new.ndim - 1)), new, old))
    return rows, jnp.asarray(halted_B)


def assert_all_gradients(folder, step, lm, grads, relative):
    """Also of the rows of the table, which the official code has one by one; states that begin have none."""
    stored, named = load_file(folder / f"grads_step{step}.safetensors"), lm.official_tensors(grads)
    per_row_BE = stored.pop("inner.puzzle_emb.local_weights", None)
    if per_row_BE is not None:
        rows, _ = rows_in_work(loaded(folder)[1], step)
        table = np.zeros(named["inner.puzzle_emb.weights"].shape)
        np.add.at(table, np.asarray(rows["puzzle_identifiers"]), per_row_BE)
        stored["inner.puzzle_emb.weights"] = table
    for name in set(named) - set(stored):
        assert name.endswith(("_init", "init_hidden"))
        assert not np.any(named[name]), name
    assert set(stored) <= set(named)
    for name, theirs in stored.items():
        scale = np.abs(theirs).max() or 1
        np.testing.assert_allclose(np.asarray(named[name]) / scale, theirs / scale, atol=relative, err_msg=name)
