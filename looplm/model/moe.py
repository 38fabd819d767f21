"""The mixture of experts as a feed-forward branch: router, experts, and one that every token uses."""

import jax
from flax import nnx

from looplm.config import schema
from looplm.config.schema import Model
from looplm.model.context import Context
from looplm.model.experts import Experts
from looplm.model.feed_forward import SwiGLU
from looplm.model.init import Init
from looplm.model.router import Router
from looplm.model.routing import Routing, summed, unless_padding
from looplm.sharding.collective import lay_out


class MoE(nnx.Module):
    """sum over the chosen experts of weight * f_e(x), + f_shared(x)."""

    def __init__(self, config: Model, moe: schema.MoE, init: Init, *, rngs: nnx.Rngs):
        self.moe = moe
        self.router, self.experts = Router(config.dim, moe, init, rngs=rngs), Experts(config, moe, init, rngs=rngs)
        self.shared = SwiGLU(config.dim, moe.shared_dim, init, rngs=rngs) if moe.shared_dim else None

    def __call__(self, x_BSD: jax.Array, routed_BSD: jax.Array, context: Context) -> tuple[jax.Array, Routing | None]:
        """Send every token to its experts. Returns (out (B, S, D), what the router chose; None where nobody asks).

        routed_BSD: what the router reads, in the layout of the residual stream: x, or its norm (`peri`).
        """
        ids_BSk, weights_BSk, scores_BSE, logits_BSE = self.router(routed_BSD, context.loop.number_B)
        ids_BSk = unless_padding(ids_BSk, context.counted_BS, self.moe.num_experts)
        whole = (lay_out(choice, "batch", "sequence", "routes") for choice in (ids_BSk, weights_BSk))
        out_BSD, dropped_B = self.experts(x_BSD, *whole, with_capacity=context.with_capacity)
        if self.shared is not None:
            out_BSD += self.shared(x_BSD)
        if not context.reporting.routing:
            return out_BSD, None
        return out_BSD, summed(
            logits_BSE,
            scores_BSE,
            ids_BSk,
            dropped_B,
            with_softmax=self.moe.balance.entropy_weight > 0,
            with_logits=context.reporting.router_logits,
        )
