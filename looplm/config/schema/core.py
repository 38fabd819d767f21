"""How the state of the loops begins and moves: first states and cores, one class a value, told apart by `kind`."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from looplm.config.schema.base import NonNegativeFloat, Section
from looplm.config.schema.own import OrOwn, OwnCore
from looplm.config.schema.streams import LoopStreams


class InputState(Section):
    """The first state is what the loops get as input: the prelude's output."""

    kind: Literal["input"] = "input"


class EmbeddingState(Section):
    """The first state is the token embedding, before the prelude."""

    kind: Literal["embedding"] = "embedding"


class ZeroState(Section):
    """The first state is zero."""

    kind: Literal["zeros"] = "zeros"


class NormalState(Section):
    """The first state is drawn anew for every token: normal, cut at some standard deviations (arXiv 2502.05171)."""

    kind: Literal["normal"] = "normal"
    std: PositiveFloat = 0.4**0.5
    """Standard deviation before it is cut."""
    cut: PositiveFloat = 3.0
    """Values beyond so many standard deviations are drawn again."""
    corrected: bool = False
    """Whether what is left of the cut is widened, so that `std` is its standard deviation (arXiv 2605.21488, which cuts
    at 2)."""


class VectorState(Section):
    """The first state is one vector, the same at every place: normal, cut at 2 standard deviations and widened to a
    standard deviation of 1 (arXiv 2506.21734)."""

    kind: Literal["vector"] = "vector"
    learned: bool = False
    """Whether it is trained; else it stays as it was drawn."""


StateInit = Annotated[InputState | EmbeddingState | ZeroState | NormalState | VectorState, Field(discriminator="kind")]


class DampedCore(Section):
    """Base of the shipped cores: what becomes of a state that a block has made (arXiv 2605.21488)."""

    damping: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Share of the new state: s + damping * (f(s) - s)."""
    noise: NonNegativeFloat = 0.0
    """Standard deviation of normal noise that is added to every new state, in evaluation too."""


class SingleCore(DampedCore):
    """One stream: injection, the shared block, a norm at the loop's end."""

    kind: Literal["single"] = "single"
    groups: PositiveInt = 1
    """Shared blocks: of R loops and G groups, loop t (from 0) applies block floor(t G / R) (arXiv 1909.11942)."""
    streams: LoopStreams | None = None
    """Several streams between loops: a loop reads a mixture of them, and what it makes is written to all. None: the
    state is one, and a loop replaces it."""


class TwoSpeedCore(DampedCore):
    """Two states at two speeds. In a loop the low one is refined `inner_loops` times, low = block(injection(low + high,
    input)), then high = block(high + low) once; the high one is read (arXiv 2506.21734, 2510.04871). `state_init` is
    that of the high one; `norm_at_loop_end` is a norm on what a block gives, at every call."""

    kind: Literal["two_speed"] = "two_speed"
    inner_loops: NonNegativeInt
    """How often a loop refines the low state."""
    inner_backprop: PositiveInt | tuple[NonNegativeInt, ...] | None = None
    """Gradient flows through the last so many of them; None means all. A tuple says it of the last loops, one entry for
    each; in loops before those it is 1 (arXiv 2605.20613). `loop.inner_growth` lets it grow."""
    high_layers: PositiveInt | None = None
    """Layers of a block for the high state alone; None means that both states share one block."""
    low_init: StateInit = VectorState()
    """The first low state."""


class LatentFeedbackCore(Section):
    """Latent thoughts: at the places of one token the input is the state that the head reads of the place before, one
    latent of a document a loop, so `loop.num_loops` is one more than the most latents (arXiv 2412.06769)."""

    kind: Literal["latent_feedback"] = "latent_feedback"
    token: NonNegativeInt
    """Id of the latent token."""


ShippedCore = Annotated[SingleCore | TwoSpeedCore | LatentFeedbackCore, Field(discriminator="kind")]
Core = Annotated[ShippedCore | OwnCore, OrOwn(OwnCore)]
