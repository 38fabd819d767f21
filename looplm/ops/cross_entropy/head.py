"""A head: what makes logits of what it reads."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from looplm.ops.cross_entropy.product import head_product
from looplm.ops.precision import at_least_fp32
from looplm.ops.softcap import softcap
from looplm.sharding.collective import Whole, per_channel


@dataclass(frozen=True)
class Head:
    """The parameters of a head. They are cast where they are used: their gradient is summed in another type."""

    matrix_VD: jax.Array | Whole
    bias_V: jax.Array | Whole | None = None
    """Added in float32 at least."""
    logit_softcap: float | None = None
    """See `ops.softcap`."""

    @property
    def num_logits(self) -> int:
        """V."""
        return self.matrix_VD.shape[0]

    def __call__(self, hidden_BCD: jax.Array) -> jax.Array:
        """Return the logits (B, C, V). The product is taken in hidden's type."""
        logits_BCV = head_product(hidden_BCD, self.matrix_VD.astype(hidden_BCD.dtype))
        if self.bias_V is not None:
            logits_BCV = at_least_fp32(logits_BCV)
            logits_BCV = per_channel(jnp.add, [self.bias_V.astype(logits_BCV.dtype)], logits_BCV)
        return softcap(logits_BCV, self.logit_softcap)

    def frozen(self) -> "Head":
        """The same head without a gradient."""
        return Head(*jax.lax.stop_gradient((self.matrix_VD, self.bias_V)), self.logit_softcap)
