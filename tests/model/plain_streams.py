"""Hyper-connections of one sequence, written out stream by stream: the second implementation's (`plain.py`)."""

from typing import Any

from looplm.config import schema

Array = Any
"""Of numpy or of JAX."""
Params = dict[str, Any]


def read(streams: schema.Streams, p: Params, x_SnD: Array, eps: float) -> tuple[Array, Array, Array]:
    """Returns (what a branch gets (S, D), weights of writing (S, n), of mixing (S, n, n) from stream to stream)."""
    xp, n = x_SnD.__array_namespace__(), streams.count
    reading, writing, mixing = logits(streams, p, x_SnD, eps)
    match streams.bounds:
        case "sigmoid":
            reading, writing = sigmoid(reading) + streams.eps, 2 * sigmoid(writing)
        case "softmax":
            reading, writing = softmax(reading, 1), softmax(writing, 1)
    match streams.mix:
        case schema.IdentityMix():
            mixing = xp.stack([xp.eye(n)] * len(x_SnD))
        case schema.DiagonalMix():
            mixing = sigmoid(mixing)[:, :, None] * xp.eye(n)
        case schema.SinkhornMix() as kind:
            mixing = doubly_stochastic(kind, mixing, streams.eps)
    return sum(reading[:, j, None] * x_SnD[:, j] for j in range(n)), writing, mixing


def write(x_SnD: Array, writing_Sn: Array, mixing_Snn: Array, out_SD: Array) -> Array:
    xp, n = x_SnD.__array_namespace__(), x_SnD.shape[1]
    mixed = [sum(mixing_Snn[:, j, k, None] * x_SnD[:, j] for j in range(n)) for k in range(n)]
    return xp.stack([mixed[k] + writing_Sn[:, k, None] * out_SD for k in range(n)], axis=1)


def collapse(streams: schema.Streams, p: Params, x_SnD: Array, eps: float) -> Array:
    n = streams.count
    if streams.collapse == "head":
        flat_S = unit(x_SnD.reshape(len(x_SnD), -1), eps)
        weights_Sn = sigmoid(flat_S @ p["kernel"].reshape(-1, n) * p["scale"] + p["bias"]) + streams.eps
        return sum(weights_Sn[:, j, None] * x_SnD[:, j] for j in range(n))
    return sum(x_SnD[:, j] for j in range(n)) / (n if streams.collapse == "mean" else 1)


def logits(streams: schema.Streams, p: Params, x_SnD: Array, eps: float) -> tuple[Array, Array, Array | None]:
    xp, (S, n, _) = x_SnD.__array_namespace__(), x_SnD.shape
    if streams.weights == "static":
        made = [0, 0, 0]
    elif streams.weights == "joint":
        raw = unit(x_SnD.reshape(S, -1), eps) @ p["kernel"].reshape(x_SnD[0].size, -1)
        made = [raw[:, :n], raw[:, n : 2 * n], raw[:, 2 * n :]]
    else:
        raw = unit(x_SnD, eps) * p["norm_scale"] @ p["kernel"]
        made = [raw[:, :, 0], raw[:, :, 1], raw[:, :, 2:]]
    if streams.weights != "static":
        made = [scale * (xp.tanh(one) if streams.bounds == "none" else one)
                for scale, one in zip(p["scale"], made, strict=False)]  # fmt: skip
    reading, writing = (xp.zeros((S, n)) + p[f"{name}_bias"] + made[i] for i, name in enumerate(("read", "write")))
    if "mix_bias" not in p:
        return reading, writing, None
    shape = (S, *p["mix_bias"].shape)
    dynamic = 0 if streams.weights == "static" else made[2].reshape(shape)
    return reading, writing, xp.zeros(shape) + p["mix_bias"] + dynamic


def doubly_stochastic(kind: schema.SinkhornMix, logits_Snn: Array, eps: float) -> Array:
    x = softmax(logits_Snn / kind.temperature, 2 if kind.last == "columns" else 1) + eps
    first = True
    for _ in range(kind.iterations):
        for axis in (2, 1) if kind.last == "columns" else (1, 2):
            x = x if first else x / (x.sum(axis=axis, keepdims=True) + eps)
            first = False
    return x


def unit(x: Array, eps: float) -> Array:
    xp = x.__array_namespace__()
    return x / xp.sqrt(xp.mean(x**2, axis=-1, keepdims=True) + eps)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + x.__array_namespace__().exp(-x))


def softmax(x: Array, axis: int) -> Array:
    raised = x.__array_namespace__().exp(x)  # of small numbers: the gradient of a maximum is not exact under jit
    return raised / raised.sum(axis=axis, keepdims=True)
