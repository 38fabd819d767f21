"""A second implementation of the looped model, written out with Python loops: what the engine is compared with.

No scan, no stacking, no chunks, no masks but a square; parameters are read by name from the same nested dictionary. It
computes in what it is given: with arrays of numpy in float64, with those of JAX so that it can be differentiated.
"""

from functools import partial
from typing import Any

import jax
import numpy as np

from looplm.config import schema
from looplm.config.schema import Model
from tests.model import plain_streams

Params = dict[str, Any]
Array = Any
"""Of numpy or of JAX."""


def forward(
    config: Model, params: Params, tokens_S: Array, num_loops: int, drawn_SD: Array | None = None
) -> tuple[Array, Array | None]:
    """One sequence. Returns (logits (R, S, V), gate logits (R, S) or None).

    drawn_SD: the first state, if it is drawn.
    """
    embedded = params["embedding"]["table"][tokens_S] * config.embedding_scale
    xp = embedded.__array_namespace__()
    if "position_table" in params:
        embedded = embedded + config.positions.scale * params["position_table"]["table"][: len(tokens_S)]
    tables = params.get("value_embedding", {})
    e = layers(config, params.get("prelude"), embedded, tables.get("prelude"), tokens_S)
    if config.prelude_norm:
        e = norm(config, params.get("prelude_norm"), e)
    core = params["core"]
    starts = {"input": e, "embedding": embedded, "zeros": 0 * e, "normal": drawn_SD}
    starts["vector"] = 0 * e + core.get("first", 0)
    state, logits, gates = starts[config.state_init.kind], [], []
    low_init = getattr(config.core, "low_init", config.state_init)
    streams = getattr(config.core, "streams", None)
    if streams is not None:
        state = xp.stack([state] * streams.count, axis=1)
    low = {**starts, "vector": 0 * e + core.get("low_first", 0)}[low_init.kind]
    for number in range(num_loops):
        if isinstance(config.core, schema.TwoSpeedCore):
            state, low = two_speed(config, core, state, low, e)
            logits.append(leave(config, params, state, None, tokens_S))
            continue
        h = state
        if streams is not None:
            row = min(number, (streams.loops or 1) - 1)
            of_loop = jax.tree.map(lambda leaf, row=row: leaf[row] if streams.loops else leaf, core["connection"])
            h, writing, mixing = plain_streams.read(streams, of_loop, state, config.norm_eps)
        x = inject(config, core, h, e)
        if "conditioning" in core:
            own = core["conditioning"]["vector"]
            x = x + own[min(number, len(own) - 1)]
        step = 1 / num_loops if config.residual_step == "inverse_loops" else 1
        new = layers(config, core["block"], x, tables.get("block"), tokens_S, number, step)
        if config.norm_at_loop_end:
            new = norm(config, core.get("end_norm"), new)
        new = read = (1 - config.core.damping) * h + config.core.damping * new
        if streams is not None:
            if streams.vectors:
                new = new + (core["vector"][row] if streams.loops else core["vector"])
            new = plain_streams.write(state, writing, mixing, new)
            read = plain_streams.collapse(streams, core.get("ends", {}), new, config.norm_eps)
        state = new
        logits.append(leave(config, params, read, tables.get("coda"), tokens_S))
        if config.exit_gate:
            gates.append((read @ params["gate"]["kernel"] + params["gate"]["bias"])[:, 0])
    return xp.stack(logits), xp.stack(gates) if gates else None


def two_speed(config: Model, core: Params, high: Array, low: Array, e: Array) -> tuple[Array, Array]:
    """One loop of (the high state, the low one)."""

    def call(name: str, norm_name: str, old: Array, x: Array) -> Array:
        new = layers(config, core[name], x, None, None)
        if config.norm_at_loop_end:
            new = norm(config, core.get(norm_name), new)
        return (1 - config.core.damping) * old + config.core.damping * new

    for _ in range(config.core.inner_loops):
        low = call("block", "end_norm", low, inject(config, core, low + high, e))
    of_high = ("high_block", "high_end_norm") if config.core.high_layers else ("block", "end_norm")
    return call(*of_high, high, high + low), low


def inject(config: Model, core: Params, state: Array, e: Array) -> Array:
    xp, kind = e.__array_namespace__(), config.injection
    match kind:
        case schema.AddInjection():
            return state + e
        case schema.ConcatInjection():
            halves = core["injection"]["linear"]["kernel"]
            both = xp.concatenate([state, e], axis=-1) @ xp.concatenate([halves[0], halves[1]], axis=0)
            return both + core["injection"].get("bias", 0)
        case schema.DiagonalInjection():
            p = core["injection"]
            step = xp.log(1 + xp.exp(p["step_bias"]))
            return xp.exp(-step * xp.exp(p["log_rate"])) * state + step * (e @ p["input"]["kernel"])
        case schema.GateInjection():
            keep = 1 / (1 + xp.exp(-core["injection"]["keep"]))
            return keep * state + (1 - keep) * e
    return state


def leave(config: Model, params: Params, state: Array, tables: Array | None, tokens_S: Array) -> Array:
    """Logits."""
    xp = state.__array_namespace__()
    hidden = state @ params["read_out"]["kernel"] if config.read_out else state
    if config.norm_before_coda and config.final_norm:
        hidden = norm(config, params.get("final_norm"), hidden)
    hidden = layers(config, params.get("coda"), hidden, tables, tokens_S)
    if config.final_norm:
        hidden = norm(config, params.get("final_norm"), hidden)
    head_VD = params["embedding"]["table"] if config.tie_embeddings else params["head"]
    logits, cap = hidden @ head_VD.T + params.get("head_bias", 0), config.logit_softcap
    return cap * xp.tanh(logits / cap) if cap else logits


def layers(
    config: Model,
    stack: Params | None,
    x_SD: Array,
    tables: Array | None,
    tokens_S: Array,
    loop: int = 0,
    step: float = 1,
) -> Array:
    """step: what every branch is multiplied with."""
    if stack is None:
        return x_SD
    kind, table = config.feed_forward, 0
    dense = kind.dense_layers if isinstance(kind, schema.MoE) else ()
    num_layers = jax.tree.leaves(stack["layers"])[0].shape[0] + len(dense)
    x = x_SD if config.streams is None else x_SD.__array_namespace__().stack([x_SD] * config.streams.count, axis=1)
    for i in range(num_layers):
        embedded = None
        if config.value_embedding and (num_layers - 1 - i) % config.value_embedding.every == 0:
            embedded = (stack["value_gates"]["linear"]["kernel"][table], tables[table][tokens_S])
            table += 1
        row = dense.index(i) if i in dense else i - sum(d < i for d in dense)
        p = jax.tree.map(lambda leaf, row=row: leaf[row], stack["dense_layers" if i in dense else "layers"])
        attend = partial(attention, config, p["attention"], embedded=embedded)
        x = branch(config, p.get("attention_residual", {}), x, attend, step)
        transform = partial(feed_forward, kind.dense if i in dense else kind, p["feed_forward"], loop=loop)
        x = branch(config, p.get("feed_forward_residual", {}), x, transform, step)
    if config.streams is None:
        return x
    return plain_streams.collapse(config.streams, stack.get("ends", {}), x, config.norm_eps)


def branch(config: Model, p: Params, x: Array, f: Any, step: float) -> Array:
    """Add the output of f(what values and experts read, what queries, keys and routers read)."""
    before, after = (lambda x, name=name: norm(config, p.get(name), x) for name in ("norm", "out_norm"))
    if config.streams is None:
        read, add = x, lambda out: x + step * out
    else:
        read, writing, mixing = plain_streams.read(config.streams, p["connection"], x, config.norm_eps)
        add = lambda out: plain_streams.write(x, writing, mixing, step * out)  # noqa: E731
    match config.norm_placement:
        case "pre":
            return add(f(before(read), before(read)))
        case "sandwich":
            return add(after(f(before(read), before(read))))
        case "sandwich_sum":
            return after(add(f(before(read), before(read))))
        case "peri":
            return add(f(read, before(read)))
        case "post":
            return before(add(f(read, read)))
        case "output":
            return add(before(f(read, read)))


def norm(config: Model, p: Params | None, x: Array) -> Array:
    xp = x.__array_namespace__()
    if config.norm == "layer":
        assert p is not None
        deviation = xp.sqrt(xp.var(x, axis=-1, keepdims=True) + config.norm_eps)
        return (x - xp.mean(x, axis=-1, keepdims=True)) / deviation * p["scale"] + p["bias"]
    return over_root_mean_square(x, config.norm_eps) * (1 if p is None else p["scale"])


def over_root_mean_square(x: Array, eps: float) -> Array:
    xp = x.__array_namespace__()
    return x / xp.sqrt(xp.mean(x**2, axis=-1, keepdims=True) + eps)


def feed_forward(kind: schema.FeedForward, p: Params, x: Array, routed: Array, loop: int) -> Array:
    """routed: what a router reads, and what a feed-forward without one does."""
    xp = x.__array_namespace__()
    if isinstance(kind, schema.MoE):
        return mixture(kind, p, x, routed, loop)
    up, down = routed @ p["up"]["kernel"], p["down"]["kernel"]
    match kind:
        case schema.SwiGLU():
            return (silu(routed @ p["gate"]["kernel"]) * up) @ down
        case schema.ConvSwiGLU():
            inner = silu(routed @ p["gate"]["kernel"]) * up
            padded = xp.concatenate([xp.zeros((kind.kernel - 1, inner.shape[1]), inner.dtype), inner], axis=0)
            rows = p["conv"]["kernel"]
            mixed = sum(rows[k] * padded[k : k + len(inner)] for k in range(kind.kernel))
            return silu(mixed + p["conv"]["bias"]) @ down
        case schema.GELU():
            return (up / 2 * (1 + xp.tanh((2 / np.pi) ** 0.5 * (up + 0.044715 * up**3)))) @ down
        case schema.SquaredReLU():
            return (kind.scale * xp.where(up > 0, up, 0) ** 2) @ down


def mixture(kind: schema.MoE, p: Params, x: Array, routed: Array, loop: int) -> Array:
    """Softmax scores of SwiGLU experts, renormalised; every loop has a row of the biases, later ones the last."""

    def row_of_loop(table: Array) -> Array:
        return table[min(loop, len(table) - 1)]

    xp, router, none = x.__array_namespace__(), p["router"], np.zeros((1, 1))
    scores = softmax(routed @ router["kernel"] + row_of_loop(router.get("loop_bias", none)))
    wanted, out = scores + row_of_loop(router.get("balance_bias", none)), 0.0
    chosen = wanted >= xp.sort(wanted, axis=-1)[:, -kind.experts_per_token, None]
    total = xp.sum(xp.where(chosen, scores, 0), axis=-1)
    for e in range(kind.num_experts):
        up, gate, down = (p["experts"][name][e] for name in ("up", "gate", "down"))
        weight = xp.where(chosen[:, e], scores[:, e], 0) / total
        out = out + weight[:, None] * ((silu(x @ gate) * (x @ up)) @ down)
    return out


def silu(x: Array) -> Array:
    return x * sigmoid(x)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + x.__array_namespace__().exp(-x))


def softmax(x: Array) -> Array:
    xp = x.__array_namespace__()
    exponentials = xp.exp(x - xp.max(x, axis=-1, keepdims=True))
    return exponentials / xp.sum(exponentials, axis=-1, keepdims=True)


def attention(config: Model, p: Params, x_SD: Array, read_SD: Array, embedded: tuple | None) -> Array:
    """read_SD: what queries, keys and routers read."""
    xp, length, N = x_SD.__array_namespace__(), x_SD.shape[0], config.num_heads
    K, H = config.kv_heads, config.head_size
    distance = np.arange(length)[:, None] - np.arange(length)
    seen = (distance >= 0) | (config.attention_mask == "full")
    seen = seen & (np.abs(distance) < (config.attention_window or length))
    queries, keys = (heads(config, p[name], read_SD) for name in ("query", "key"))
    out = 0.0
    for n in range(N):
        q, k = queries[n], keys[n // (N // K)]
        v = project(config, p, "value", n // (N // K), x_SD, read_SD)
        if embedded is not None:
            gate_CK, rows_SKH = embedded
            gate_S = 2 * sigmoid(x_SD[:, : len(gate_CK)] @ gate_CK[:, n // (N // K)])
            v = v + gate_S[:, None] * rows_SKH[:, n // (N // K)]
        scores = q @ k.T
        if "relative" in p:
            of = {name: leaf[..., n, :] for name, leaf in p["relative"].items()}
            by_distance = (q + of["position"]) @ (sinusoids(length, config.dim) @ of["kernel"]).T
            scores = (q + of["content"]) @ k.T + xp.stack(
                [by_distance[s, np.maximum(distance[s], 0)] for s in range(length)]
            )
        weights = softmax(xp.where(seen, scores / H**0.5, -np.inf))
        given = weights @ v
        if "gate" in p:
            given = given * sigmoid(read_SD @ p["gate"]["kernel"][:, n])
        out = out + project(config, p, "output", n, given, read_SD)
    return out


def heads(config: Model, p: Params, x_SD: Array) -> list[Array]:
    """Queries or keys of every head."""
    xp, kernel = x_SD.__array_namespace__(), p["project"]["kernel"]
    found = [x_SD @ kernel[:, n] + (p["bias"][n] if config.qk_bias else 0) for n in range(kernel.shape[1])]
    if config.qk_norm and not config.qk_norm_scale:
        found = [over_root_mean_square(h, float(np.finfo(np.float32).eps)) for h in found]
    elif config.qk_norm and config.qk_norm_over == "head":
        found = [over_root_mean_square(h, config.norm_eps) * p["norm"]["scale"] for h in found]
    elif config.qk_norm:
        together = over_root_mean_square(xp.concatenate(found, axis=-1), config.norm_eps)
        found = [h * p["norm"]["scale"][n] for n, h in enumerate(xp.split(together, len(found), axis=-1))]
    return [rotate(config.rope, h) for h in found] if isinstance(config.positions, schema.RotaryPositions) else found


def project(config: Model, p: Params, name: str, head: int, x_SH: Array, routed_SD: Array) -> Array:
    """The values of a head, or what it adds to the output."""
    kind, values, xp = config.attention, name == "value", x_SH.__array_namespace__()
    if not isinstance(kind, schema.MixtureAttention) or (values and kind.num_experts == 1):
        return x_SH @ (p[name]["kernel"][:, head] if values else p[name]["kernel"][head])
    score_SE = sigmoid(routed_SD @ p[f"{name}_router"]["kernel"][:, head])
    least_S1 = xp.sort(score_SE, axis=-1)[:, -kind.experts_per_token, None]
    out = 0.0
    for e in range(kind.num_experts):
        weight_S1 = xp.where(score_SE >= least_S1, score_SE, 0)[:, e, None]
        matrix = p[name]["experts"]["kernel"][e]
        out = out + weight_S1 * (x_SH @ (matrix[:, head] if values else matrix[head]))
    return out


def rotate(rope: schema.Rope, x_SH: Array) -> Array:
    """Pairs (i, i + H/2) or (2i, 2i + 1) as complex numbers, turned by position times frequency; H dims turn."""
    xp, size = x_SH.__array_namespace__(), 2 * int(rope.fraction * x_SH.shape[1] / 2)
    firsts = np.arange(size // 2) if rope.layout == "half" else np.arange(0, size, 2)
    seconds = firsts + (size // 2 if rope.layout == "half" else 1)
    frequencies = [frequency(rope, rope.theta ** (-2 * i / size), i, size) for i in range(size // 2)]
    turn = xp.exp(1j * xp.asarray(np.outer(np.arange(len(x_SH)), frequencies)))
    if isinstance(rope.scaling, schema.YarnScaling):
        turn = turn * (0.1 * np.log(rope.scaling.factor) + 1)
    turned = (x_SH[:, firsts] + 1j * x_SH[:, seconds]) * turn
    places = np.argsort(np.concatenate([firsts, seconds]))
    return xp.concatenate([xp.concatenate([turned.real, turned.imag], axis=1)[:, places], x_SH[:, size:]], axis=1)


def frequency(rope: schema.Rope, plain: float, pair: int, size: int) -> float:
    """Scaled, as Llama 3.1 was published: waves shorter than a quarter of the original length stay. YaRN has its ramp
    between the pairs, as real numbers made whole, that turn 32 times (here 4) and once in the original length."""
    scaling = rope.scaling
    if isinstance(scaling, schema.YarnScaling):
        log_theta, waves = np.log(rope.theta), scaling.original_length / (2 * np.pi)
        kept_until = max(np.floor(size * np.log(waves / scaling.fast_turns) / (2 * log_theta)), 0)
        stretched_from = np.ceil(size * np.log(waves) / (2 * log_theta))
        share = min(max((pair - kept_until) / (stretched_from - kept_until), 0), 1)
        return plain * (1 - share) + plain / scaling.factor * share
    if isinstance(scaling, schema.LinearScaling):
        return plain / scaling.factor
    if not isinstance(scaling, schema.RampScaling):
        return plain
    turns = scaling.original_length * plain / (2 * np.pi)
    kept = min(max((turns - 1) / (4 - 1), 0), 1)
    return kept * plain + (1 - kept) * plain / scaling.factor


def sinusoids(length: int, dim: int) -> np.ndarray:
    angles = np.arange(length)[:, None] / 10_000.0 ** (np.arange(0, dim, 2) / dim)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
