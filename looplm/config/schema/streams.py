"""Residual streams: a layer, or a loop, reads a mixture of several copies of the residual stream and writes to all."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from looplm.config.schema.base import Fraction, NonNegativeFloat, Section


class FreeMix(Section):
    """Any matrix: at first the identity (arXiv 2409.19606)."""

    kind: Literal["free"] = "free"


class IdentityMix(Section):
    """Streams are not mixed."""

    kind: Literal["identity"] = "identity"


class DiagonalMix(Section):
    """Every stream keeps a share of itself, the sigmoid of a logit, and gets nothing of the others (arXiv
    2604.21254)."""

    kind: Literal["diagonal"] = "diagonal"
    initial_keep: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    """The share, at initialisation."""


class SinkhornMix(Section):
    """A matrix whose rows and columns each sum to 1, nearly: the exponential of logits, divided in turn by the sums of
    its rows (what a stream gives) and of its columns (what it gets) (arXiv 2512.24880)."""

    kind: Literal["sinkhorn"] = "sinkhorn"
    iterations: PositiveInt = 20
    """How often rows and columns are divided by their sums; each counts once an iteration."""
    temperature: PositiveFloat = 1.0
    """Logits are divided by this."""
    last: Literal["columns", "rows"] = "columns"
    """Which of the two an iteration ends with."""
    initial_diagonal: NonNegativeFloat = 4.0
    """By how much the logits on the diagonal are above the others, at initialisation."""


Mix = Annotated[FreeMix | IdentityMix | DiagonalMix | SinkhornMix, Field(discriminator="kind")]


class Streams(Section):
    """Hyper-connections: n residual streams. A branch reads a weighted sum of them; they are mixed, and each gets the
    branch's output with a weight of its own. They begin as copies."""

    count: PositiveInt = 4
    """How many (n)."""
    weights: Literal["joint", "per_stream", "static"] = "joint"
    """What the weights of a token are made of. `joint`: of all its streams together, RMS-normalised as one (arXiv
    2512.24880). `per_stream`: those of a stream of that stream alone, after a norm with a scale (arXiv 2409.19606).
    `static`: of nothing; they are learned numbers, the same for all tokens. The first two are learned numbers too, to
    which what is made of the token is added."""
    bounds: Literal["sigmoid", "softmax", "none"] = "sigmoid"
    """Of the weights with which streams are read and written. `sigmoid`: up to 1 in reading, up to 2 in writing.
    `softmax`: they sum to 1 over the streams. `none`: there are none; what is made of the token goes through a tanh."""
    mix: Mix = SinkhornMix()
    """How the streams are mixed."""
    collapse: Literal["mean", "sum", "head"] = "mean"
    """How they become one. `sum`: of copies it is n times as large. `head`: with weights that are made of all streams
    of the token, each up to 1 (DeepSeek-V4)."""
    eps: NonNegativeFloat = 1e-6
    """Added to sigmoids with which streams are read, to the exponentials of `sinkhorn` and to every sum that it divides
    by. 0: its sums are taken of logarithms, for logits of any size."""
    initial_scale: Fraction = 0.01
    """What is made of a token is multiplied with learned numbers, one for reading, writing and mixing, that begin
    here."""


class LoopStreams(Streams):
    """Streams between loops: every loop reads a mixture of them and writes to all, and the block has one stream
    (Hyperloop Transformers, arXiv 2604.21254). What is read of the state is what they collapse to."""

    mix: Mix = DiagonalMix()
    """How the streams are mixed."""
    loops: PositiveInt | None = None
    """So many loops have weights and vectors of their own, later ones use the last. None: all loops share them."""
    vectors: bool = True
    """Whether a learned vector is added to what a loop writes; 0 at first."""
