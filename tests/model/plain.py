"""A second implementation of the looped model, written out with Python loops: what the engine is compared with.

No scan, no stacking, no chunks, no masks but a triangle; parameters are read by name from the same nested dictionary.
"""

import jax
import jax.numpy as jnp

from looplm.config.schema import AddInjection, ConcatInjection, MixtureAttention, Model
from looplm.model.functional import Params


def forward(config: Model, params: Params, tokens_S: jax.Array, num_loops: int) -> tuple[jax.Array, jax.Array | None]:
    """One sequence. Returns (logits (R, S, V), gate logits (R, S) or None)."""
    head_VD = params["embedding"]["table"] if config.tie_embeddings else params["head"]
    e = params["embedding"]["table"][tokens_S]
    tables = params.get("value_embedding", {})
    e = layers(config, params.get("prelude"), e, tables.get("prelude"), tokens_S)
    state, logits, gates = e, [], []
    for _ in range(num_loops):
        core = params["core"]
        if isinstance(config.injection, AddInjection):
            x = state + e
        elif isinstance(config.injection, ConcatInjection):
            halves = core["injection"]["linear"]["kernel"]
            x = jnp.concatenate([state, e], axis=-1) @ jnp.concatenate([halves[0], halves[1]], axis=0)
            x += core["injection"].get("bias", 0)
        else:
            x = state
        state = layers(config, core["block"], x, tables.get("block"), tokens_S)
        if config.norm_at_loop_end:
            state = norm(config, core["end_norm"], state)
        hidden = state @ params["read_out"]["kernel"] if config.read_out else state
        hidden = layers(config, params.get("coda"), hidden, tables.get("coda"), tokens_S)
        if config.final_norm:
            hidden = norm(config, params["final_norm"], hidden)
        logits.append(hidden @ head_VD.T + params.get("head_bias", 0))
        if config.exit_gate:
            gates.append((state @ params["gate"]["kernel"] + params["gate"]["bias"])[:, 0])
    return jnp.stack(logits), jnp.stack(gates) if gates else None


def layers(
    config: Model, stack: Params | None, x_SD: jax.Array, tables: jax.Array | None, tokens_S: jax.Array
) -> jax.Array:
    if stack is None:
        return x_SD
    num_layers, table = jax.tree.leaves(stack["layers"])[0].shape[0], 0
    for i in range(num_layers):
        embedded = None
        if config.value_embedding and (num_layers - 1 - i) % config.value_embedding.every == 0:
            embedded = (stack["value_gates"]["linear"]["kernel"][table], tables[table][tokens_S])
            table += 1
        x_SD = layer(config, jax.tree.map(lambda leaf, i=i: leaf[i], stack["layers"]), x_SD, embedded)
    return x_SD


def layer(config: Model, p: Params, x: jax.Array, embedded: tuple | None) -> jax.Array:
    sandwich = config.norm_placement == "sandwich"
    branch = attention(config, p["attention"], norm(config, p["attention_residual"]["norm"], x), embedded)
    x = x + (norm(config, p["attention_residual"]["out_norm"], branch) if sandwich else branch)
    h = norm(config, p["feed_forward_residual"]["norm"], x)
    f = p["feed_forward"]
    gate = h @ f["gate"]["kernel"]
    branch = (gate / (1 + jnp.exp(-gate)) * (h @ f["up"]["kernel"])) @ f["down"]["kernel"]
    return x + (norm(config, p["feed_forward_residual"]["out_norm"], branch) if sandwich else branch)


def norm(config: Model, p: Params, x: jax.Array) -> jax.Array:
    if config.norm == "layer":
        deviation = jnp.sqrt(jnp.var(x, axis=-1, keepdims=True) + config.norm_eps)
        return (x - jnp.mean(x, axis=-1, keepdims=True)) / deviation * p["scale"] + p["bias"]
    return x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + config.norm_eps) * p["scale"]


def attention(config: Model, p: Params, x_SD: jax.Array, embedded: tuple | None) -> jax.Array:
    length, N = x_SD.shape[0], config.num_heads
    K = config.num_kv_heads or N
    out = 0.0
    for n in range(N):
        q = rotate(config, x_SD @ p["query"]["project"]["kernel"][:, n])
        k = rotate(config, x_SD @ p["key"]["project"]["kernel"][:, n // (N // K)])
        v = project(config, p, "value", n // (N // K), x_SD, x_SD)
        if embedded is not None:
            gate_CK, rows_SKH = embedded
            gate_S = 2 / (1 + jnp.exp(-x_SD[:, : len(gate_CK)] @ gate_CK[:, n // (N // K)]))
            v += gate_S[:, None] * rows_SKH[:, n // (N // K)]
        scores = jnp.where(jnp.tril(jnp.ones((length, length), bool)), q @ k.T / jnp.sqrt(q.shape[-1]), -jnp.inf)
        out += project(config, p, "output", n, jax.nn.softmax(scores, axis=-1) @ v, x_SD)
    return out


def project(config: Model, p: Params, name: str, head: int, x_SH: jax.Array, routed_SD: jax.Array) -> jax.Array:
    """The values of a head, or what it adds to the output."""
    mixture, values = config.attention, name == "value"
    if not isinstance(mixture, MixtureAttention) or (values and mixture.num_experts == 1):
        return x_SH @ (p[name]["kernel"][:, head] if values else p[name]["kernel"][head])
    score_SE = 1 / (1 + jnp.exp(-routed_SD @ p[f"{name}_router"]["kernel"][:, head]))
    least_S1 = jnp.sort(score_SE, axis=-1)[:, -mixture.experts_per_token, None]
    out = 0.0
    for e in range(mixture.num_experts):
        weight_S1 = jnp.where(score_SE >= least_S1, score_SE, 0)[:, e, None]
        matrix = p[name]["experts"]["kernel"][e]
        out += weight_S1 * (x_SH @ (matrix[:, head] if values else matrix[head]))
    return out


def rotate(config: Model, x_SH: jax.Array) -> jax.Array:
    """Pairs (i, i + H/2) as complex numbers, turned by position * theta^(-2i/H); H dims of a head turn."""
    size = int(config.rope.fraction * x_SH.shape[1])
    half = size // 2
    turn = jnp.exp(1j * jnp.outer(jnp.arange(len(x_SH)), config.rope.theta ** (-2 * jnp.arange(half) / size)))
    turned = (x_SH[:, :half] + 1j * x_SH[:, half:size]) * turn
    return jnp.concatenate([turned.real, turned.imag, x_SH[:, size:]], axis=1)
