"""Whether a KV policy may be used: before text is written, what `looplm eval --kv` measured is looked at."""

from pathlib import Path

import jax
import jax.numpy as jnp

from looplm.errors import UserError, warn
from looplm.infer.cache import Policy, parse_policy
from looplm.metrics.kv_loss import KVLosses, KVPolicyLoss

LARGE = 0.05
"""Nats per token that make text visibly worse: five per cent of perplexity."""


def check_kv(
    text: str | None,
    num_loops: int,
    dtype: jax.typing.DTypeLike,
    file: Path | None,
    *,
    exit: str | None = None,
    allow: bool = False,
) -> None:
    """Look whether a policy costs much; see `parse_policy`. One that was never measured, and may cost something, is
    allowed with a warning.

    Args:
        dtype: the compute type.
        file: of `KVLosses`; None where there is none.
        exit: the exit rule beside it.
        allow: whatever it costs.

    Raises UserError for one that was measured to cost more than `LARGE`.
    """
    policy = parse_policy(text, num_loops)
    if text is None or allow or _keeps_all(policy, num_loops, dtype):
        return
    losses = KVLosses.read(file) if file is not None else None
    found = _of(losses, text, exit) if losses is not None else None
    if losses is None or found is None:
        where = file.parent.parent if file is not None else "RUN"
        warn(
            f"what kv={text} costs was never measured on this checkpoint; `looplm eval {where} --kv {text}` does, and "
            "kv=ragged keeps everything"
        )
    elif found.change > LARGE:
        raise UserError(
            f"kv={text} costs this checkpoint {found.change:.3f} nats per token (95 % interval "
            f"{found.change_low:.3f} .. {found.change_high:.3f}, measured on {losses.data}), and more than {LARGE} is "
            "refused; use kv=ragged or a policy with more slots, or allow it: --allow-lossy-kv, allow_lossy_kv=True"
        )


def _keeps_all(policy: Policy, num_loops: int, dtype: jax.typing.DTypeLike) -> bool:
    """Whether every loop finds its own keys and values, in the compute type or a wider one."""
    kept = policy.dtype(dtype)
    is_wide = jnp.issubdtype(kept, jnp.floating) and jnp.finfo(kept).nmant >= jnp.finfo(dtype).nmant
    return policy.slots >= num_loops and is_wide


def _of(losses: KVLosses, text: str, exit: str | None) -> KVPolicyLoss | None:
    """Return what was measured of a policy, whatever it was called: under the exit rule, else without one."""
    wanted = parse_policy(text, losses.num_loops)
    alike = [one for one in losses.policies if parse_policy(one.policy, losses.num_loops) == wanted]
    return next((one for rule in (exit, None) for one in alike if one.exit == rule), None)
