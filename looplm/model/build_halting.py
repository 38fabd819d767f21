"""From the config to a halting rule."""

from flax import nnx

from looplm.config.schema import ACTHalting, Model, NeverHalting, OwnHalting
from looplm.model.act import ACT
from looplm.model.halting import Halting, Never


def build_halting(config: Model, *, rngs: nnx.Rngs) -> Halting:
    """Make the halting rule that the config names."""
    match config.halting:
        case NeverHalting():
            return Never()
        case ACTHalting() as kind:
            return ACT(config, kind, rngs=rngs)
        case OwnHalting() as own:
            return own.build(config, rngs=rngs)
