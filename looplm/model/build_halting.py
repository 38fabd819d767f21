"""From the config to a halting rule."""

from flax import nnx

from looplm.config.schema import ACTHalting, ExpertChoice, Model, NeverHalting, OwnHalting, TokenChoice
from looplm.model import depth_routers
from looplm.model.act import ACT
from looplm.model.halting import Halting, Never


def build_halting(config: Model, *, rngs: nnx.Rngs) -> Halting:
    """Make the halting rule that the config names."""
    match config.halting:
        case NeverHalting():
            return Never()
        case ACTHalting() as kind:
            return ACT(config, kind, rngs=rngs)
        case ExpertChoice() as kind:
            return depth_routers.ExpertChoice(config, kind, rngs=rngs)
        case TokenChoice() as kind:
            return depth_routers.TokenChoice(config, kind, rngs=rngs)
        case OwnHalting() as own:
            return own.build(config, rngs=rngs)
