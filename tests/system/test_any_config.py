"""Programs of whatever config the rules accept are traced and lowered, and a step is that of one device."""

import os
import re
from functools import partial
from random import Random

import jax
import numpy as np
import pytest
from jax.tree_util import keystr, tree_leaves_with_path

from looplm.config.load import override
from looplm.data.window import PADDING
from looplm.errors import UserError
from looplm.eval.score import Scorer
from looplm.infer.cache import check_writes, parse_policy
from looplm.infer.exit_rule import parse_exit
from looplm.infer.program import Plan, empty_board, take_up, write
from looplm.infer.sampling import Sampling
from looplm.infer.schedule.depth_batching import DepthBatching
from looplm.infer.schedule.draft import DraftAndVerify
from looplm.infer.schedule.in_step import InStep
from looplm.infer.schedule.scheduler import Scheduler
from looplm.infer.schedule.wavefront import Wavefront
from looplm.metrics.step import StepOutput
from looplm.ops.attention.choice import KERNELS
from looplm.ops.cross_entropy import IGNORED
from looplm.sharding.mesh import build_mesh
from looplm.sharding.rules import MESH_AXES, placement
from looplm.train.program import Program
from tests.system.any_config import PLACE, AnyConfig, Choice, Draw, all_choices, any_config

FIRST_SEED = int(os.environ.get("LOOPLM_FIRST_SEED", "0"))
"""Another one gives configs that nobody has seen."""
NUM_SEEDS, NUM_QUICK = 1000, 6
NUM_DRAWN = 2000
"""So many draws make every choice, those inside a section inside a section too."""
NUM_STEPS, NUM_QUICK_STEPS = 40, 0
ALWAYS_REFUSED = {
    ("Model", "attention_mask", "prefix"),  # a token dataset holds no prefixes
    *(("Model", "attention_backend", name) for name in KERNELS),  # not for CPUs
    ("Model", "dtype", "float64"),  # outside of JAX's 64-bit mode
    ("Run", "objective", "Distillation"),  # without a folder
    ("Checkpoint", "best_metric", "str"),  # no metric has the name that is drawn
}
EXITS = ("kl:0.001,patience=2", "latent:0.03+entropy:1.5", "argmax:2,min=2", "confidence:0.9|kl:0.1")
KEYS_SEEN = (None, "each", "last", "first", "ring:2", "anchor:1,bf16", "ragged,int8")


def seeds(count: int, quick: int) -> list:
    return [pytest.param(FIRST_SEED + i, marks=[] if i < quick else pytest.mark.slow) for i in range(count)]


@pytest.mark.parametrize("seed", seeds(NUM_SEEDS, NUM_QUICK))
def test_programs_are_lowered(seed: int) -> None:
    config = accepted(seed)
    program = Program(config.run, config.mesh)
    program.lower()
    if seed % 2 or not writes(config):
        lower_scoring(program)
    else:
        lower_generation(program, Random(seed))


def writes(config: AnyConfig) -> bool:
    try:
        check_writes(config.run.model)
    except UserError:
        return False
    return True


def lower_scoring(program: Program) -> None:
    batch = {name: jax.ShapeDtypeStruct(rows.shape, rows.dtype, sharding=placement(program.mesh, "batch"))
             for name, rows in tokens_of(program).items()}  # fmt: skip
    with jax.set_mesh(program.mesh):
        num_loops, params = program.run.loop.num_loops, program.lm.abstract(program.mesh)
        score = Scorer(program.lm, program.mesh, num_loops, tempered=True, signals=True)
        kept = jax.eval_shape(partial(score._empty, num_loops=num_loops), params, batch) if score.remembers else None
        reads = "all" if score.one_pass else "last"
        score._score.lower(params, batch, kept, num_loops=num_loops, reads=reads)


def lower_generation(program: Program, random: Random) -> None:
    lm, num_loops = program.lm, program.run.loop.num_loops
    exit = random.choice((None, *EXITS, *["gate:0.5"] * (lm.config.exit_gate is not None)))
    policy = parse_policy(random.choice(KEYS_SEEN), num_loops)
    schedulers: list[Scheduler] = [InStep()]
    if not lm.has_loop_parameters and not policy.exact:
        schedulers += [DepthBatching()] * (exit is not None)
        schedulers += [Wavefront(1), DraftAndVerify(1, 2)] * (exit is None and policy.slots == num_loops)
    rows, places, ids = random.choice((1, 2)), 64, lm.config.vocab_size
    plan = Plan(num_loops, parse_exit(exit, lm.config), policy, random.choice(schedulers), ids, rows, places)
    params = jax.eval_shape(lm.apart, lm.shapes)
    board = jax.eval_shape(partial(empty_board, lm, plan), params)
    sampling, ends_N = Sampling(random.choice((None, 1.0))), np.zeros(1, np.int32)
    rows_G, tokens_GP, streams_G = (
        np.arange(rows, dtype=np.int32),
        np.zeros((rows, 32), np.int32),
        np.zeros(rows, np.uint32),
    )
    take_up.lower(lm, plan, params, board, sampling, ends_N, rows_G, tokens_GP, rows_G + 1, rows_G + 2, streams_G)
    write.lower(lm, plan, params, board, sampling, ends_N, 1000, until_one_ends=False)


@pytest.mark.parametrize("seed", seeds(NUM_STEPS, NUM_QUICK_STEPS))
def test_a_step_equals_that_on_one_device(seed: int) -> None:
    config = accepted(seed)
    run = override(config.run, {"model.dtype": "float32", "loop.unroll": False})
    alone = override(run, {f"mesh.{axis}": 1 for axis in MESH_AXES})
    found = step_of(Program(run, config.mesh))
    expected = step_of(Program(alone, build_mesh(alone.mesh, jax.devices()[:1])))
    assert np.isfinite(expected.means["train/loss"])
    for (path, value), ours in zip(tree_leaves_with_path(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(ours, value, rtol=1e-3, atol=1e-4, err_msg=keystr(path))


def step_of(program: Program) -> StepOutput:
    _, output = program.compile()(program.create_state(), tokens_of(program), 0)
    return jax.device_get(output)


def tokens_of(program: Program) -> dict[str, np.ndarray]:
    """Rows of a batch: two documents each, and padding where there is room for it."""
    data, random = program.run.data, np.random.default_rng(0)
    shape = (data.batch_tokens // data.sequence_length, data.sequence_length)
    positions = np.broadcast_to(np.arange(data.sequence_length), shape)
    segments = 1 + (positions > data.sequence_length // 2)
    segments[:, 3:] = np.where(random.random(shape) < 0.2, PADDING, segments)[:, 3:]
    tokens, labels = random.integers(0, program.run.model.vocab_size, (2, *shape))
    labels = np.where(segments == PADDING, IGNORED, labels)
    rows = {"tokens": tokens, "labels": labels, "segments": segments, "positions": positions}
    if (front := program.run.model.front) is not None and front.ids is not None:
        rows["ids"] = random.integers(0, front.ids.num_ids, shape[:1])
    return {name: value.astype(np.int32) for name, value in rows.items()}


@pytest.mark.slow
def test_every_choice_is_drawn() -> None:
    chosen, expected = set[Choice](), all_choices()
    for seed in range(NUM_DRAWN):
        draw = Draw(seed)
        draw.tree(num_devices=8)
        chosen |= draw.chosen
        if chosen == expected:
            break
    assert chosen == expected


@pytest.mark.slow
def test_every_choice_is_accepted_but_for_a_few() -> None:
    accepted = [config for config in map(any_config, range(NUM_DRAWN)) if config is not None]
    assert len(accepted) >= 0.98 * NUM_DRAWN
    assert {choice for config in accepted for choice in config.chosen} == all_choices() - ALWAYS_REFUSED
    for config in accepted:
        for line in config.refused:
            assert "\n" not in line
            assert PLACE.search(line) or re.search(r"\b\w+=\d", line), "no setting is named"


def accepted(seed: int) -> AnyConfig:
    config = any_config(seed)
    assert config is not None, "too many draws were refused"
    return config
