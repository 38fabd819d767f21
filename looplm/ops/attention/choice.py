"""Which backend computes an attention, and why: decided when a program is traced, by the platform that it is for and by
what is asked. A backend says of itself what it cannot (`cannot`), in words; `auto` passes over it, and a user who wants
that one is told."""

from dataclasses import replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from looplm.config.schema import Model, RelativePositions
from looplm.errors import UserError
from looplm.ops.attention import cudnn, splash, triton
from looplm.ops.attention.mask import Asked, Mask, self_mask

Backend = Literal["dense", "blockwise", "splash", "triton", "cudnn"]
Kernel = Literal["splash", "triton", "cudnn"]

KERNELS: dict[Kernel, tuple[str, Any]] = {
    "splash": ("tpu", splash),
    "cudnn": ("gpu", cudnn),
    "triton": ("gpu", triton),
}
"""By name: the platform, and the module. Where a platform has several, the better one is first."""
WORTH_BLOCKS = 128
"""From so many queries on a CPU is faster by blocks."""
TOO_LONG = 2048
"""From so many queries on an accelerator without a kernel for them goes by blocks, which hold no scores; below, all
scores at once are faster."""


class Choice(NamedTuple):
    """What computes an attention."""

    backend: Backend
    why: str
    """In words, with what the better ones could not; empty where there is no better one."""

    def __str__(self) -> str:
        """Return a line for the console."""
        return f"{self.backend}; {self.why}" if self.why else self.backend


def choose(mask: Mask, asked: Asked) -> Choice:
    """Choose the backend of a program that is traced now.

    Raises UserError where the backend that the user wants (`mask.backend`) cannot compute this, or not there.
    """
    here = platform()
    if mask.backend != "auto":
        return _wanted(mask.backend, mask, asked, here)
    reasons: list[str] = []
    for name, (where, kernel) in KERNELS.items():
        if where == here:
            reason = kernel.cannot(mask, asked)
            if reason is None:
                return Choice(name, "; ".join(reasons))
            reasons.append(f"{name} is passed over: {reason}")
    by_blocks = asked.num_queries >= (WORTH_BLOCKS if here == "cpu" else TOO_LONG)
    return Choice("blockwise" if by_blocks else "dense", "; ".join(reasons))


def choose_for(config: Model, length: int, dtype: jax.typing.DTypeLike, mesh: jax.sharding.Mesh) -> Choice:
    """Choose the backend of a model's training on a mesh: for whole sequences of documents, so long. Raises as `choose`
    does."""
    segments_BS: Any = jax.ShapeDtypeStruct((1, length), jnp.int32)  # of which nothing but the shape is asked
    mask = replace(self_mask(config, segments_BS), num_keys=config.memory_length + length)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        biased = isinstance(config.positions, RelativePositions)
        return choose(mask, Asked(length, dtype, config.head_size, biased))


def platform() -> str:
    """Return the platform that a program is for that is traced now: cpu, tpu or gpu."""
    mesh = jax.sharding.get_abstract_mesh()
    name = jax.default_backend() if mesh.empty else mesh.abstract_device.platform
    return "gpu" if name in ("cuda", "rocm") else name


def _wanted(name: Backend, mask: Mask, asked: Asked, here: str) -> Choice:
    if name in KERNELS:
        where, kernel = KERNELS[name]
        reason = kernel.cannot(mask, asked) if where == here else f"it is a kernel for a {where}, and this is a {here}"
        if reason is not None:
            raise UserError(
                f"model.attention_backend={name} does not compute this attention: {reason}; "
                "use model.attention_backend=auto, or blockwise, which computes everything"
            )
    return Choice(name, "as model.attention_backend says")
