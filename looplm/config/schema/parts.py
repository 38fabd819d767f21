"""The parts of a model: unions of variants, one class a value, told apart by `kind`."""

import math
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from looplm.config.schema.base import Section
from looplm.config.schema.own import OrOwn, OwnInjection


class NoInjection(Section):
    """The prelude output enters only as the first state."""

    kind: Literal["none"] = "none"


class AddInjection(Section):
    """Every loop starts from state + prelude output."""

    kind: Literal["add"] = "add"


class ConcatInjection(Section):
    """Every loop starts from a linear map of [state; prelude output] (arXiv 2502.05171)."""

    kind: Literal["concat"] = "concat"
    init: Literal["random", "state", "input"] = "random"
    """First value of the (2D, D) map: random, [I, 0] (pass the state) or [0, I] (pass the input)."""
    bias: bool = False
    """A learned bias on what it gives, 0 at first."""


class DiagonalInjection(Section):
    """decay * state + dt * B e, all but B per channel, decay = exp(-dt exp(A)) < 1: contracts (arXiv 2604.12946)."""

    kind: Literal["diagonal"] = "diagonal"
    initial_decay: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2**0.5
    """Share of the state that a loop keeps, at initialisation."""


class GateInjection(Section):
    """input + keep * (state - input), keep = sigmoid(b) per channel: exactly the input where the state still is it."""

    kind: Literal["gate"] = "gate"
    initial_keep: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    """Share of the state that a loop keeps, at initialisation."""


ShippedInjection = Annotated[
    NoInjection | AddInjection | ConcatInjection | DiagonalInjection | GateInjection, Field(discriminator="kind")
]
Injection = Annotated[ShippedInjection | OwnInjection, OrOwn(OwnInjection)]


class SwiGLU(Section):
    """silu(x W_gate) * (x W_up) W_down."""

    kind: Literal["swiglu"] = "swiglu"


class GELU(Section):
    """gelu(x W_up + a) W_down + b (arXiv 1606.08415)."""

    kind: Literal["gelu"] = "gelu"
    exact: bool = False
    """Whether gelu is x times the normal distribution function; else it is the tanh form."""
    bias: bool = False
    """Whether there are a and b."""


class ConvSwiGLU(Section):
    """silu(conv(silu(x W_gate) * (x W_up))) W_down: a causal convolution over positions of every inner channel by
    itself, with a bias (arXiv 2512.14693)."""

    kind: Literal["conv_swiglu"] = "conv_swiglu"
    kernel: PositiveInt = 2
    """A token sees so many of the last tokens of its document, itself included."""


class SquaredReLU(Section):
    """scale * relu(x W_up)^2 W_down."""

    kind: Literal["relu2"] = "relu2"
    scale: PositiveFloat = 1.0
    """Constant factor."""


class ReLU(Section):
    """relu(x W_up + a) W_down + b (arXiv 1706.03762)."""

    kind: Literal["relu"] = "relu"
    bias: bool = True
    """Whether there are a and b."""


class ConvReLU(Section):
    """conv(relu(conv(x))), both over positions of a document and with biases: the other transition function of the
    Universal Transformer (arXiv 1807.03819). They see as many tokens on both sides with `attention_mask=full`, else the
    last ones only."""

    kind: Literal["conv_relu"] = "conv_relu"
    kernel: PositiveInt = 3
    """How many positions the first one sees."""
    second_kernel: PositiveInt = 3
    """How many the second one sees; 31 in tensor2tensor."""
    separable: bool = False
    """Whether a convolution is one of every channel by itself, and then a matrix."""
    relu_twice: bool = False
    """Another relu on what comes out."""


class NoScaling(Section):
    """Rotary frequencies as they are."""

    kind: Literal["none"] = "none"


class LinearScaling(Section):
    """Positions divided by `factor`."""

    kind: Literal["linear"] = "linear"
    factor: PositiveFloat
    """How many times longer the context gets."""


class RampScaling(Section):
    """Long wavelengths stretched by `factor`, short ones kept, a ramp between (Llama 3.1)."""

    kind: Literal["llama3"] = "llama3"
    factor: PositiveFloat
    """How many times longer the context gets."""
    low_frequency_factor: PositiveFloat = 1.0
    """Wavelengths above original_length / this are stretched in full."""
    high_frequency_factor: PositiveFloat = 4.0
    """Wavelengths below original_length / this are kept."""
    original_length: PositiveInt
    """Tokens of the context before it was stretched."""


class YarnScaling(Section):
    """Dims that turn seldom stretched by `factor`, those that turn often kept, a ramp between over the number of the
    dim; scores sharpened (YaRN, arXiv 2309.00071)."""

    kind: Literal["yarn"] = "yarn"
    factor: PositiveFloat
    """How many times longer the context gets."""
    fast_turns: PositiveFloat = 32.0
    """Dims that turn so often within the original length, and faster ones, are kept."""
    slow_turns: PositiveFloat = 1.0
    """Dims that turn so often within it, and slower ones, are stretched."""
    original_length: PositiveInt
    """Tokens of the context before it was stretched."""
    whole_dims: bool = True
    """Whether the ramp begins and ends at whole numbers of dims."""
    attention_factor: PositiveFloat | None = None
    """Queries and keys are both multiplied with this; None means 0.1 ln(factor) + 1."""

    @property
    def sharpening(self) -> float:
        """The factor of queries and of keys."""
        if self.attention_factor is not None:
            return self.attention_factor
        return 0.1 * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0


Scaling = Annotated[NoScaling | LinearScaling | RampScaling | YarnScaling, Field(discriminator="kind")]


class Rope(Section):
    """Rotary positions (arXiv 2104.09864)."""

    theta: PositiveFloat = 10_000.0
    """Base of the wavelengths."""
    layout: Literal["half", "interleaved"] = "half"
    """Which dims of those that turn form a pair: i and i + H/2, or 2i and 2i + 1."""
    fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Share of a head's dims that turn, the first ones, down to an even number; frequencies are those of a head of that
    size."""
    scaling: Scaling = NoScaling()
    """How frequencies change for a context longer than the trained one."""

    def turned(self, head_dim: int) -> int:
        """How many dims of a head turn."""
        return 2 * int(self.fraction * head_dim / 2)


class RotaryPositions(Section):
    """Queries and keys turn with their position, as `model.rope` says."""

    kind: Literal["rotary"] = "rotary"


class RelativePositions(Section):
    """Scores depend on the distance to a key, through a learned projection of its sinusoids, and on two learned vectors
    per head (Transformer-XL, arXiv 1901.02860). Causal attention only."""

    kind: Literal["relative"] = "relative"
    shared_vectors: bool = False
    """Whether all layers of a stack have the same two vectors per head, as in the authors' PyTorch code."""
    max_distance: PositiveInt | None = None
    """Keys that are farther count as if they were so far; None: as far as they are (`clamp_len`)."""


class LearnedPositions(Section):
    """A learned vector per position is added to the embedding."""

    kind: Literal["learned"] = "learned"
    length: PositiveInt
    """Positions that have one, places in front of the tokens included; a document is no longer than this."""
    scale: PositiveFloat = 1.0
    """The vectors are multiplied with this."""


class NoPositions(Section):
    """Only the causal mask tells the order (arXiv 2305.19466)."""

    kind: Literal["none"] = "none"


Positions = Annotated[RotaryPositions | RelativePositions | LearnedPositions | NoPositions, Field(discriminator="kind")]


class NoConditioning(Section):
    """A loop does not know which one it is."""

    kind: Literal["none"] = "none"


class VectorConditioning(Section):
    """Every loop adds a vector of its own to what enters the shared block; later loops than these add the last."""

    kind: Literal["vector"] = "vector"
    loops: PositiveInt
    """Loops that have a vector of their own."""


class SinusoidalConditioning(Section):
    """Every loop adds sinusoids of its own number and, with `positions`, of every token's position to what enters the
    shared block (arXiv 1807.03819)."""

    kind: Literal["sinusoidal"] = "sinusoidal"
    positions: bool = True
    """Whether the position is told anew in every loop; `model.positions` may then be none."""


class TrajectoryConditioning(Section):
    """R loops are steps that sum to 1, of 1/R each but where the objective draws others. A vector of a loop's time and
    step scales what every branch of the shared block reads, in place of its norm's own scale, and weighs what it adds
    (arXiv 2602.11451)."""

    kind: Literal["trajectory"] = "trajectory"
    features: Annotated[int, Field(ge=2)] = 256
    """Cosines and sines of the time, and as many of the step, from which the vector is made."""
    starts_at_zero: bool = True
    """Whether scales and gates are 0 at first, so that a loop changes nothing; else their matrices start from `init`,
    as in the authors' code."""


Conditioning = Annotated[
    NoConditioning | VectorConditioning | SinusoidalConditioning | TrajectoryConditioning, Field(discriminator="kind")
]


class NormalInit(Section):
    """Every matrix from one normal law."""

    kind: Literal["normal"] = "normal"
    std: PositiveFloat = 0.02
    """Standard deviation of all matrices."""


class DepthScaledInit(Section):
    """std = sqrt(2 / (5 D)), cut at 3 std; maps back to the residual stream / sqrt(2 * depth) (arXiv 2502.05171)."""

    kind: Literal["depth_scaled"] = "depth_scaled"
    effective_depth: PositiveInt
    """Layers that a token passes: prelude + loops * block + coda."""


class ZeroOutputInit(Section):
    """As `normal`, but maps back to the residual stream start at zero: every layer starts as the identity."""

    kind: Literal["zero_output"] = "zero_output"
    std: PositiveFloat = 0.02
    """Standard deviation of the other matrices."""


class OrthogonalInit(Section):
    """As `zero_output`, but matrices orthogonal, with entries of std sqrt(2 / (5 D)) (arXiv 2604.12946)."""

    kind: Literal["orthogonal"] = "orthogonal"


class FanInInit(Section):
    """std = sqrt(2 / depth) / sqrt(inputs); experts of a feed-forward, which are added up, count the inputs of all of
    them to the outputs, and get rows of one length in their router. Embeddings 1 / sqrt(D); the head and its bias
    uniform within 1 / sqrt(D) (RobertCsordas/moeut, arXiv 2405.16039)."""

    kind: Literal["fan_in"] = "fan_in"
    effective_depth: PositiveInt
    """Layers that a token passes: prelude + loops * block + coda."""


Init = Annotated[
    NormalInit | DepthScaledInit | ZeroOutputInit | OrthogonalInit | FanInInit, Field(discriminator="kind")
]


class ValueEmbedding(Section):
    """Some layers add an embedding of the token, gated per head, to their attention's values (arXiv 2604.12946)."""

    every: PositiveInt = 2
    """The last layer of prelude, block and coda has one, and every so many-th before it."""
    gate_channels: PositiveInt = 32
    """The gate reads so many of the first channels of what the attention reads."""


class HeadTransform(Section):
    """The head reads norm(activation(W h + b)), of the width of the embeddings (arXiv 1810.04805)."""

    activation: Literal["gelu", "gelu_exact", "relu"] = "gelu"
    """The tanh form of gelu, the exact one, or relu."""


class ReadOut(Section):
    """A linear map from the state to what the coda reads; never weight-decayed (arXiv 2604.12946)."""

    init: Literal["random", "identity"] = "random"
    """First value of the map."""


class ExitGate(Section):
    """One linear unit per token on the state after every loop (arXiv 2510.25741)."""

    initial_exit_probability: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.05
    """lambda at initialisation; small, so that the expected depth starts near the number of loops."""
