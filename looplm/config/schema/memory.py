"""What the layers of the loops see from before the sequence."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, NonNegativeInt, PositiveInt, Tag

from looplm.config.schema.base import NonNegativeFloat, Section


class SegmentMemory(Section):
    """Every layer of the shared block also sees what entered it at the last tokens before the sequence, without its
    gradient (Transformer-XL, arXiv 1901.02860). A document's memory ends with it. Rows have to go on from step to step:
    `data.order=streams`."""

    kind: Literal["segments"] = "segments"
    length: NonNegativeInt
    """So many tokens (M); 0 is no memory."""
    loops: Literal["all", "last"] = "all"
    """`all`: a loop sees what entered the layer in the same loop. `last`: every loop sees what entered it in the last
    one, which also suits depths that are drawn."""

    @property
    def compressed_length(self) -> int:
        """Places that stand for several tokens."""
        return 0


class CompressiveMemory(Section):
    """A memory of segments, and before it a compressed one: what leaves the memory is made into fewer places and not
    forgotten (Compressive Transformer, arXiv 1911.05507). A compressed place whose tokens are not all of one document
    is seen by nobody. What compresses learns from a loss of its own alone, which nothing else learns from."""

    kind: Literal["compressive"] = "compressive"
    length: NonNegativeInt
    """So many tokens (M); at least a sequence of them, where there is a compressed memory."""
    loops: Literal["all", "last"] = "all"
    """As for `segments`."""
    compressed_length: NonNegativeInt
    """Places of the compressed memory; 0 is a memory of segments."""
    rate: PositiveInt = 4
    """So many tokens become one place; a sequence is a multiple of it."""
    compression: Literal["mean", "max", "convolution"] = "convolution"
    """What makes them one: their mean or maximum in every channel, or a convolution with a bias whose kernel is as long
    as its stride, the rate; every layer has its own."""
    loss_weight: NonNegativeFloat = 1.0
    """Weight of the reconstruction: the squared difference between what the layer's heads read of the tokens that
    leave, without positions, and what they read of what is made of these; a mean over channels, tokens and loops,
    summed over layers."""


def _kind(memory: Any) -> str:
    return memory.get("kind", "segments") if isinstance(memory, dict) else memory.kind


Memory = Annotated[
    Annotated[SegmentMemory, Tag("segments")] | Annotated[CompressiveMemory, Tag("compressive")], Discriminator(_kind)
]
