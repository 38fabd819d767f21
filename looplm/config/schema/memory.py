"""What the layers of the loops see from before the sequence."""

from typing import Literal

from pydantic import NonNegativeInt

from looplm.config.schema.base import Section


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


Memory = SegmentMemory
