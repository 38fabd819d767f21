"""The Python API, cell by cell: load a run, call it at any depth, take gradients, write text.

    looplm demo                                  (makes runs/demo/run)
    python examples/python_api.py runs/demo/run

Editors that know `# %%` (VS Code, PyCharm, Jupyter with jupytext) run it as a notebook. An official folder of Ouro or
Huginn may be given in place of the run.
"""

# %% A run, its newest checkpoint that verifies, or an official folder
import sys

import jax.numpy as jnp
import optax

import looplm

folder = sys.argv[1] if len(sys.argv) > 1 else "runs/demo/run"
lm = looplm.load(folder)
assert lm.tokenizer is not None, "this folder came without a tokenizer"
print(f"{lm.functional.num_params:,} parameters, trained with {lm.loop.num_loops} loops")

# %% One pass at a depth that it need not have been trained at
text = "def read_lines(path):\n    return open(path)"
tokens_BS = jnp.asarray([lm.tokenizer.encode(text)])
out = lm(tokens_BS, num_loops=8)
print("what the head reads after every loop (R, B, S, D):", out.hidden_RBSD.shape)

# %% The loss at every depth, of this one pass; -100 is not scored
labels_BS = jnp.roll(tokens_BS, -1, axis=1).at[:, -1].set(-100)
for depth in (1, 2, 4, 8):
    losses_BS = optax.softmax_cross_entropy_with_integer_labels(out.logits(depth)[:, :-1], labels_BS[:, :-1])
    print(f"depth {depth}: {losses_BS.mean():.3f} nats a token")

# %% When tokens would leave, if there is a gate: the mean loop under the exit distribution, token by token
if out.exit_RBS is not None:
    loops_R = jnp.arange(1, len(out.exit_RBS) + 1)
    mean_S = jnp.einsum("r,rs->s", loops_R, out.exit_RBS[:, 0])
    print("expected loops:", [f"{mean:.1f}" for mean in mean_S])

# %% Loss and gradients of the run's objective, through four loops of which the first two carry none
loss, grads = lm.loss_and_grads(tokens_BS, labels_BS, num_loops=4, num_detached=2)
print(f"objective {loss:.3f}, norm of the gradient {optax.tree.norm(grads):.3f}")

# %% Text at two depths, and with an exit rule; every answer knows how many loops its tokens took
prompts = ["def read_lines(path):", "class Reader:"]
for options in ({"num_loops": 1}, {"num_loops": 4}, {"exit": "kl:0.01"}):
    (first, _) = lm.generate(prompts, max_tokens=16, **options)
    print(options, repr(str(first)), "loops:", list(map(int, first.loops)))
