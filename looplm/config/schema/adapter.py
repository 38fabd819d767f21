"""Adapters: a few new parameters that learn in place of the model's own."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from looplm.config.schema.base import Section

Rate = Annotated[float, Field(ge=0.0, lt=1.0)]


class LoRA(Section):
    """Adds scale * (x A) B to a projection x W (arXiv 2106.09685): A is uniform after He, B is 0 at first. With an
    adapter in a model nothing else learns, unless `optim.train` says so."""

    kind: Literal["lora"] = "lora"
    targets: tuple[str, ...] = ("attention", "feed_forward")
    """Projections by role: a name on their path (`attention`, `attention.query`, `block.feed_forward`, `injection`,
    `read_out`), or a pattern of such names (`attention.*`). Of experts every one has a pair of its own."""
    rank: NonNegativeInt = 16
    """Columns of A and rows of B; 0 adds nothing."""
    alpha: PositiveFloat = 32.0
    """The scale is alpha / rank."""
    rank_stabilised: bool = False
    """The scale is alpha / sqrt(rank) instead (rsLoRA, arXiv 2312.03732)."""
    dropout: Rate = 0.0
    """Share of what A reads that is set to 0 in training, the rest being scaled up."""
    loops: PositiveInt | None = None
    """So many loops of the shared block have matrices of their own, later ones use the last (arXiv 2410.20672). None:
    all loops share them."""
    loop_dropout: Rate = 0.0
    """Share of the loops in which, in training, a sequence goes without the shared block's adapter, the rest being
    scaled up."""

    @property
    def scale(self) -> float:
        """What the product is multiplied with; for a rank above 0."""
        return self.alpha / (self.rank**0.5 if self.rank_stabilised else self.rank)

    @property
    def drops(self) -> bool:
        """Whether training draws what is left out."""
        return self.rank > 0 and (self.dropout > 0 or self.loop_dropout > 0)
