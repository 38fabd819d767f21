"""First weights of another size: only what is asked for, all else leaf by leaf."""

import jax
import numpy as np
import pytest

from looplm.checkpoint.streamed import Streamed, write_streamed
from looplm.config.load import to_json
from looplm.config.schema import Mesh
from looplm.errors import UserError
from looplm.model.functional import FunctionalLM
from looplm.sharding.mesh import build_mesh
from looplm.train.initial import check_source, weights_from
from looplm.train.program import Program

SMALL = {
    "model.conditioning": {"kind": "vector", "loops": 2}, "model.vocab_size": 390,
    "model.positions": {"kind": "learned", "length": 70},
}  # fmt: skip
LARGE = {
    "model.conditioning": {"kind": "vector", "loops": 4}, "model.vocab_size": 400,
    "model.positions": {"kind": "learned", "length": 150},
}  # fmt: skip
SMALLER = SMALL | {"model.vocab_size": 386, "model.positions": {"kind": "learned", "length": 65}}
ALL = ["vocabulary", "loops", "positions"]


@pytest.fixture(scope="module")
def source(tmp_path_factory, tiny_run):
    """A run directory and its weights, all of them numbers of their own."""
    run, folder = tiny_run(**SMALL), tmp_path_factory.mktemp("source")
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), FunctionalLM(run.model).shapes)
    streamed = jax.tree.map(lambda leaf: Streamed(leaf.shape, leaf.dtype, lambda: iter([leaf])), params)
    write_streamed(folder / "checkpoints", 0, streamed, config=to_json(run), seed=0, metrics={})
    (folder / "config.json").write_text(to_json(run))
    return folder, params


def program_of(run):
    return Program(run, build_mesh(Mesh(fsdp=2, data=4)))


@pytest.mark.parametrize(("size", "sign"), [(LARGE, 1), (SMALLER, -1)])
def test_rows_and_loops_are_cut_off_or_made_of_the_others(source, tiny_run, size, sign):
    folder, before = source
    program = program_of(tiny_run(**size, init_resize=ALL))
    check_source(folder, program, None)
    after = jax.tree.map(np.asarray, weights_from(folder, program, lambda line: None))
    for find in (lambda tree: tree["embedding"]["table"], lambda tree: tree["head"]):
        old_VD, new_VD = find(before), find(after)
        same = min(len(old_VD), len(new_VD))
        np.testing.assert_array_equal(new_VD[:same], old_VD[:same])
        np.testing.assert_allclose(new_VD[same:], np.broadcast_to(old_VD.mean(0), new_VD[same:].shape), atol=1e-6)
    old_RD, new_RD = (tree["core"]["conditioning"]["vector"] for tree in (before, after))
    np.testing.assert_array_equal(new_RD, old_RD[[0, 1, 1, 1][: len(new_RD)]])
    old_SD, new_SD = (tree["position_table"]["table"] for tree in (before, after))
    np.testing.assert_array_equal(new_SD, np.concatenate([old_SD, old_SD, old_SD])[: len(new_SD)])
    assert sign * (len(new_SD) - len(old_SD)) > 0
    block = [tree["core"]["block"] for tree in (before, after)]
    jax.tree.map(np.testing.assert_array_equal, *block)
    assert sign * (len(after["head"]) - len(before["head"])) > 0


@pytest.mark.parametrize(
    ("size", "allowed", "told"),
    [
        (
            LARGE,
            [],
            r"head is float32\[390, 16\] there and .*init_resize=\[\"vocabulary\", \"loops\", \"positions\"\] to",
        ),
        (
            SMALL | {"model.positions": LARGE["model.positions"]},
            ["vocabulary"],
            r"position_table\.table is float32\[70, 16\] there .*init_resize=\[\"positions\"\] to fit them",
        ),
        (LARGE, ["vocabulary"], r"core\.conditioning\.vector is float32\[2, 16\] there"),
        ({**LARGE, "model.hidden_dim": 64}, ALL, r"feed_forward\.down\.kernel is .*; give its values, or init_from="),
    ],
)
def test_what_is_not_asked_for_is_refused_leaf_by_leaf(source, tiny_run, size, allowed, told):
    with pytest.raises(UserError, match=told) as refusal:
        check_source(source[0], program_of(tiny_run(**size, init_resize=allowed)), None)
    assert "embedding.table" not in str(refusal.value) or "vocabulary" not in allowed
