"""A training loop of your own around the model: the depth is drawn for every step, and nothing compiles again.

    python examples/own_training_loop.py --steps 300

One shared layer learns p-hop induction (arXiv 2402.09268): find my previous occurrence, take the token after it, p
times over. This is what `looplm train` does, without its checkpoints, guards and meshes; write it when the step itself
is what you want to change. For anything smaller a part of your own is enough: see own_injection.py.
"""

# %% What is trained
import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from looplm.config.schema import AddInjection, FinalCrossEntropy, Model, PHop
from looplm.data.loader import eval_batches
from looplm.data.synthetic import TaskWindows, build_task
from looplm.model.context import Context
from looplm.model.depth import Depth
from looplm.model.forward import Forward
from looplm.model.functional import FunctionalLM, Params
from looplm.objective import build_objective, evaluate
from looplm.ops.attention import self_mask

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--steps", type=int, default=300)
parser.add_argument("--dim", type=int, default=128)
arguments = parser.parse_args()

task = build_task(PHop(hops=2, length=32, alphabet=4))
config = Model(
    vocab_size=task.vocab_size,
    dim=arguments.dim,
    num_heads=4,
    hidden_dim=3 * arguments.dim,
    block_layers=1,
    injection=AddInjection(),
)
lm, objective = FunctionalLM(config), build_objective(FinalCrossEntropy())
params = lm.init(jax.random.key(0))
print(f"{lm.num_params:,} parameters")

# %% The batches: numpy arrays (B, S) of tokens, labels, segments and positions
windows = TaskWindows(task, sequence_length=32)
batches = eval_batches(windows, batch_size=64)

# %% One step. `num_loops` is an argument of the compiled program: 1 to MAX_LOOPS are the same one
Batch = dict[str, jax.Array]
MAX_LOOPS = 6
optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(3e-3, weight_decay=0.1))
traced: list[str] = []


def mean_loss(params: Params, batch: Batch, num_loops: jax.Array) -> jax.Array:
    context = Context(batch["positions"], self_mask(config, batch["segments"]))
    depth = Depth(MAX_LOOPS, num_trained=num_loops)
    forward = Forward(lm.bind(params), batch["tokens"], context, depth, jnp.float32)
    sums, _ = evaluate(objective, forward, batch["labels"], jax.random.key(0))
    return sums.objective / sums.tokens  # sums and counts: the one division is here


@jax.jit
def step(
    params: Params, state: optax.OptState, batch: Batch, num_loops: jax.Array
) -> tuple[Params, optax.OptState, jax.Array]:
    traced.append(f"{num_loops}")  # runs when the step is traced, not when it is called
    loss, grads = jax.value_and_grad(mean_loss)(params, batch, num_loops)
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state, loss


# %% The loop of steps
state, rng, started = optimizer.init(params), np.random.default_rng(0), time.perf_counter()
for number, rows in zip(range(arguments.steps), batches, strict=False):
    num_loops = int(rng.integers(1, MAX_LOOPS, endpoint=True))
    params, state, loss = step(params, state, jax.device_put(rows), jnp.int32(num_loops))
    if number % 50 == 0 or number == arguments.steps - 1:
        print(f"step {number}: {num_loops} loops, loss {loss:.3f}, {time.perf_counter() - started:.0f} s")
print(f"compiled {len(traced)} time(s) for all depths")

# %% What depth is worth, on examples of another seed
held_out = TaskWindows(build_task(PHop(hops=2, length=32, alphabet=4, seed=1)), sequence_length=32)
batch = jax.device_put(next(iter(eval_batches(held_out, batch_size=256))))
measure = jax.jit(mean_loss)
for num_loops in range(1, MAX_LOOPS + 1):
    print(f"held-out loss after {num_loops} loops: {measure(params, batch, jnp.int32(num_loops)):.3f} nats")
