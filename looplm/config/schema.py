"""The typed description of a run: what is trained, on what, how and where.

Frozen pydantic models; every field has its meaning and unit under it. Choices that carry fields of their own
(injection, objective, depth, ...) are unions told apart by `kind`. Nothing here imports jax, so a wrong config fails
in milliseconds. Checks that involve several sections are in `check.py`.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegativeFloat = Annotated[float, Field(ge=0.0)]


class Section(BaseModel):
    """Base of every config section: immutable, and an unknown key is an error."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,  # JSON has no such numbers
    )


# --- model -----------------------------------------------------------------------------------------------------------


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


class DiagonalInjection(Section):
    """decay * state + dt * B e, all but B per channel, decay = exp(-dt exp(A)) < 1: contracts (arXiv 2604.12946)."""

    kind: Literal["diagonal"] = "diagonal"
    initial_decay: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2**0.5
    """Share of the state that a loop keeps, at initialisation."""


Injection = Annotated[NoInjection | AddInjection | ConcatInjection | DiagonalInjection, Field(discriminator="kind")]


class InputState(Section):
    """The first state is what the loops get as input: the prelude's output."""

    kind: Literal["input"] = "input"


class EmbeddingState(Section):
    """The first state is the token embedding, before the prelude."""

    kind: Literal["embedding"] = "embedding"


class ZeroState(Section):
    kind: Literal["zeros"] = "zeros"


class NormalState(Section):
    """The first state is drawn anew for every token: normal, cut at 3 standard deviations (arXiv 2502.05171)."""

    kind: Literal["normal"] = "normal"
    std: PositiveFloat = 0.4**0.5


StateInit = Annotated[InputState | EmbeddingState | ZeroState | NormalState, Field(discriminator="kind")]


class SwiGLU(Section):
    """silu(x W_gate) * (x W_up) W_down."""

    kind: Literal["swiglu"] = "swiglu"


class GELU(Section):
    """gelu(x W_up) W_down, the tanh form."""

    kind: Literal["gelu"] = "gelu"


class SquaredReLU(Section):
    """scale * relu(x W_up)^2 W_down."""

    kind: Literal["relu2"] = "relu2"
    scale: PositiveFloat = 1.0


FeedForward = Annotated[SwiGLU | GELU | SquaredReLU, Field(discriminator="kind")]


class NoScaling(Section):
    kind: Literal["none"] = "none"


class LinearScaling(Section):
    """Positions divided by `factor`."""

    kind: Literal["linear"] = "linear"
    factor: PositiveFloat


class RampScaling(Section):
    """Long wavelengths stretched by `factor`, short ones kept, a ramp between (Llama 3.1)."""

    kind: Literal["llama3"] = "llama3"
    factor: PositiveFloat
    low_frequency_factor: PositiveFloat = 1.0
    high_frequency_factor: PositiveFloat = 4.0
    original_length: PositiveInt


class Rope(Section):
    """Rotary positions (arXiv 2104.09864)."""

    theta: PositiveFloat = 10_000.0
    layout: Literal["half", "interleaved"] = "half"
    """Which dims of a head form a pair: i and i + H/2, or 2i and 2i + 1."""
    scaling: Annotated[NoScaling | LinearScaling | RampScaling, Field(discriminator="kind")] = NoScaling()


class NormalInit(Section):
    """Every matrix from one normal law."""

    kind: Literal["normal"] = "normal"
    std: PositiveFloat = 0.02


class DepthScaledInit(Section):
    """std = sqrt(2 / (5 D)), cut at 3 std; maps back to the residual stream / sqrt(2 * depth) (arXiv 2502.05171)."""

    kind: Literal["depth_scaled"] = "depth_scaled"
    effective_depth: PositiveInt
    """Layers that a token passes: prelude + loops * block + coda."""


class ZeroOutputInit(Section):
    """As `normal`, but maps back to the residual stream start at zero: every layer starts as the identity."""

    kind: Literal["zero_output"] = "zero_output"
    std: PositiveFloat = 0.02


class OrthogonalInit(Section):
    """As `zero_output`, but matrices orthogonal, with entries of std sqrt(2 / (5 D)) (arXiv 2604.12946)."""

    kind: Literal["orthogonal"] = "orthogonal"


Init = Annotated[NormalInit | DepthScaledInit | ZeroOutputInit | OrthogonalInit, Field(discriminator="kind")]


class ValueEmbedding(Section):
    """Some layers add an embedding of the token, gated per head, to their attention's values (arXiv 2604.12946)."""

    every: PositiveInt = 2
    """The last layer of prelude, block and coda has one, and every so many-th before it."""
    gate_channels: PositiveInt = 32
    """The gate reads so many of the first channels of what the attention reads."""


class ReadOut(Section):
    """A linear map from the state to what the coda reads; never weight-decayed (arXiv 2604.12946)."""

    init: Literal["random", "identity"] = "random"


class ExitGate(Section):
    """One linear unit per token on the state after every loop (arXiv 2510.25741)."""

    initial_exit_probability: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.05
    """lambda at initialisation; small, so that the expected depth starts near the number of loops."""


class Model(Section):
    """The architecture: prelude, shared block, coda. How often the block is applied is in `Loop`."""

    vocab_size: PositiveInt
    dim: PositiveInt
    """Width of the residual stream (D)."""
    num_heads: PositiveInt
    num_kv_heads: PositiveInt | None = None
    """Key/value heads (K); None means one per query head."""
    head_dim: PositiveInt | None = None
    """Size of a head (H); None means dim / num_heads."""
    hidden_dim: PositiveInt
    """Inner width of the feed-forward (F)."""
    prelude_layers: NonNegativeInt = 0
    block_layers: PositiveInt
    """Layers in the shared block (L)."""
    coda_layers: NonNegativeInt = 0
    feed_forward: FeedForward = SwiGLU()
    attention_mask: Literal["causal", "prefix", "full"] = "causal"
    """Whom a token sees in its document: what precedes it; also the whole prefix, if it is in it; everybody."""
    attention_window: PositiveInt | None = None
    """A token sees so many of the last tokens, itself included; None means all."""
    qk_norm: bool = False
    """RMSNorm on every head of queries and keys, before the rotation."""
    qk_norm_scale: bool = True
    """Whether that norm has a learned scale; without one, its eps is the machine epsilon (Parcae)."""
    qk_bias: bool = False
    """A learned bias per head on queries and keys, before the rotation."""
    rope: Rope = Rope()
    value_embedding: ValueEmbedding | None = None
    norm_placement: Literal["pre", "sandwich", "sandwich_sum"] = "pre"
    """`pre`: x + f(norm(x)). `sandwich`: x + norm(f(norm(x))) (Ouro). `sandwich_sum`: norm(x + f(norm(x))) (Huginn)."""
    norm_eps: PositiveFloat = 1e-6
    prelude_norm: bool = False
    """RMSNorm on the prelude's output, before it is the loops' input (Parcae)."""
    norm_at_loop_end: bool = False
    """RMSNorm on the state at the end of every loop; what it gives enters the next loop (Ouro)."""
    norm_before_coda: bool = False
    """The final norm is also applied, with the same weights, before the coda (Huginn)."""
    final_norm: bool = True
    """RMSNorm before the head."""
    residual_step: Literal["one", "inverse_loops"] = "one"
    """What a branch of the shared block is multiplied with before it is added: 1 or 1/R."""
    injection: Injection = NoInjection()
    state_init: StateInit = InputState()
    exit_gate: ExitGate | None = None
    read_out: ReadOut | None = None
    tie_embeddings: bool = False
    embedding_scale: PositiveFloat = 1.0
    """Embeddings are multiplied with this."""
    logit_softcap: PositiveFloat | None = None
    """c * tanh(logits / c); None means no cap."""
    init: Init = NormalInit()
    dtype: Literal["auto", "bfloat16", "float32", "float64"] = "auto"
    """Compute type; `auto` is bfloat16 on accelerators and float32 on a CPU. Parameters are float32."""


# --- loop ------------------------------------------------------------------------------------------------------------


class FixedDepth(Section):
    """Every training step runs `loop.num_loops` loops."""

    kind: Literal["fixed"] = "fixed"


class UniformDepth(Section):
    """Uniform in a range, both ends included."""

    kind: Literal["uniform"] = "uniform"
    min_loops: PositiveInt = 1
    max_loops: PositiveInt


class PoissonDepth(Section):
    """Poisson with mean `loop.num_loops`, at least 1 (arXiv 2604.12946)."""

    kind: Literal["poisson"] = "poisson"


class LogNormalPoissonDepth(Section):
    """1 + Poisson(rate), log rate normal, mean of the rate `loop.num_loops`, or `loop.backprop_loops` where that is
    larger (arXiv 2502.05171)."""

    kind: Literal["lognormal_poisson"] = "lognormal_poisson"
    sigma: PositiveFloat = 0.5
    """Standard deviation of the logarithm of the rate."""


class ScheduledDepth(Section):
    """A fixed depth that changes over steps: in jumps, or growing linearly from the first entry to the last."""

    kind: Literal["scheduled"] = "scheduled"
    loops: dict[int, PositiveInt]
    """{first step (from 0): loops}; must hold step 0."""
    interpolate: bool = False
    """Grow linearly (rounded) between the entries."""


Depth = Annotated[
    FixedDepth | UniformDepth | PoissonDepth | LogNormalPoissonDepth | ScheduledDepth, Field(discriminator="kind")
]


class Loop(Section):
    """How often the shared block runs, and how the gradient goes through it."""

    num_loops: PositiveInt
    """R: the depth of evaluation and generation, and of training when `depth` is fixed; the mean of a Poisson law."""
    depth: Depth = FixedDepth()
    """The number of loops in training."""
    depth_per: Literal["batch", "sequence"] = "batch"
    """Whether all sequences of a step share a drawn depth."""
    backprop_loops: PositiveInt | None = None
    """Gradient flows through the last so many loops; None means all (needs a bounded depth)."""
    remat: Literal["none", "layer", "loop", "names", "offload"] = "loop"
    """What the backward pass recomputes. `none`: nothing. `layer`: every layer. `loop`: every loop and in it every
    layer. `names`: as `loop`, but the branches' outputs of the loop in work are kept. `offload`: as `loop`, with the
    loops' states in host memory."""
    unroll: bool = False
    """Write the loops and layers out in the program: faster on a CPU, slower to compile; never on large models."""


# --- training --------------------------------------------------------------------------------------------------------


class FinalCrossEntropy(Section):
    """Cross-entropy after the last loop."""

    kind: Literal["final"] = "final"
    z_loss_weight: NonNegativeFloat = 0.0
    """Weight of the squared log-normaliser of the logits, which keeps them from drifting."""


class ExpectedCrossEntropy(Section):
    """Cross-entropy of every loop weighted by the exit distribution, minus an entropy bonus (arXiv 2510.25741)."""

    kind: Literal["expected"] = "expected"
    entropy_weight: NonNegativeFloat = 0.05
    """beta: nats of loss given for a nat of entropy of the exit distribution."""
    sampled_heads: PositiveInt | None = None
    """Apply the head to so many loops, drawn anew every step, with an unbiased sum; None means to all."""
    z_loss_weight: NonNegativeFloat = 0.0


class WeightedCrossEntropy(Section):
    """Cross-entropy of every loop with fixed weights that sum to 1; needs no gate."""

    kind: Literal["weighted"] = "weighted"
    weights: Literal["uniform", "linear"] = "uniform"
    """The same for all loops, or growing with the loop's number."""
    sampled_heads: PositiveInt | None = None
    """Apply the head to so many loops, drawn anew every step, with an unbiased sum; None means to all."""
    z_loss_weight: NonNegativeFloat = 0.0


class GateImprovement(Section):
    """Trains the gate alone, on how much the next loop improves each token's loss (arXiv 2510.25741, stage II)."""

    kind: Literal["gate"] = "gate"
    sharpness: PositiveFloat = 50.0
    """k: slope of the target sigmoid(k (improvement - threshold))."""
    threshold: NonNegativeFloat = 0.005
    """Improvement in nats above which to go on."""


Objective = Annotated[
    FinalCrossEntropy | ExpectedCrossEntropy | WeightedCrossEntropy | GateImprovement, Field(discriminator="kind")
]


class AdamW(Section):
    """AdamW; weight decay on matrices only."""

    kind: Literal["adamw"] = "adamw"
    beta1: Fraction = 0.9
    beta2: Fraction = 0.95
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.1


class Muon(Section):
    """Orthogonalised momentum for the matrices of the layers, each layer's by itself; AdamW for all else."""

    kind: Literal["muon"] = "muon"
    momentum: Fraction = 0.95
    newton_schulz_steps: PositiveInt = 5
    weight_decay: NonNegativeFloat = 0.1
    adamw: AdamW = AdamW()
    """For embeddings, head, gate, norms and biases."""
    adamw_rate: PositiveFloat = 1.0
    """Their learning rate, as a multiple of optim.learning_rate."""


Optimizer = Annotated[AdamW | Muon, Field(discriminator="kind")]


class Schedule(Section):
    """Linear warm-up to the peak, then the decay."""

    warmup_steps: NonNegativeInt = 0
    decay: Literal["constant", "linear", "cosine", "wsd"] = "cosine"
    """`wsd`: constant, then linear over the last `wsd_fraction` of the steps."""
    wsd_fraction: Fraction = 0.2
    final_fraction: Fraction = 0.1
    """The rate of the last step, as a fraction of the peak."""


class Optim(Section):
    learning_rate: PositiveFloat
    """Peak learning rate."""
    optimizer: Optimizer = AdamW()
    schedule: Schedule = Schedule()
    clip_norm: PositiveFloat | None = 1.0
    """The gradient is scaled down to this global norm; None means never."""
    gate_rate: NonNegativeFloat = 1.0
    """Learning rate of the exit gate, as a multiple."""
    injection_rate: NonNegativeFloat = 1.0
    """Learning rate of the injection, as a multiple."""
    ema_decay: Fraction | None = None
    """Keep an exponential moving average of the weights with this decay a step; None means no."""


class Data(Section):
    train: str
    """Folder of the token dataset to train on (made by `looplm data build`)."""
    validation: str | None = None
    """Folder of the held-out token dataset."""
    sequence_length: PositiveInt
    """Tokens a window (S)."""
    batch_tokens: PositiveInt
    """Tokens of the global batch of one optimizer step; a multiple of sequence_length."""
    accumulation_steps: PositiveInt = 1
    """Micro-batches that make up one optimizer step."""
    prefetch_batches: NonNegativeInt = 4
    """Batches read ahead by the loader's threads."""


class Mesh(Section):
    """Sizes of the mesh axes; one of them may be -1, which takes all devices that are left."""

    replica: int = 1
    """Slices or islands with slow links between them: weights are copied."""
    data: int = 1
    """Weights are copied, the batch is split."""
    fsdp: int = -1
    """Weights and batch are split."""
    expert: int = 1
    """Experts and batch are split."""
    context: int = 1
    """The sequence is split; attention gathers keys and values."""
    tensor: int = 1
    """Heads, feed-forward and vocabulary are split; between the branches of a layer the sequence is."""


class Sharding(Section):
    """How weights that are split over `mesh.fsdp` meet the batch."""

    gather: Literal["once", "per_layer", "auto"] = "auto"
    """`once`: the weights are made whole before the loops and their gradient is reduced after them, once a step.
    `per_layer`: at every layer of every loop; for models whose whole block does not fit a device. `auto`: once, unless
    that takes more than a third of a device's memory."""


class Checkpoint(Section):
    every_steps: PositiveInt = 1000
    """Save after so many steps; the last step is always saved."""
    keep_last: PositiveInt = 3


class Eval(Section):
    every_steps: NonNegativeInt = 0
    """Depth sweep on the held-out data after so many steps; 0 means never."""
    depths: tuple[PositiveInt, ...] | None = None
    """Depths that are scored; None means 1..num_loops."""
    max_batches: PositiveInt | None = 64
    """Held-out batches read during training; None means all."""


class Log(Section):
    every_steps: PositiveInt = 10
    """A line on the console every so many steps (`metrics.jsonl` holds every step)."""
    tensorboard: bool = True


class Run(Section):
    """Everything that decides what a training run computes."""

    seed: NonNegativeInt = 0
    num_steps: PositiveInt
    """Optimizer steps."""
    model: Model
    loop: Loop
    objective: Objective = FinalCrossEntropy()
    optim: Optim
    data: Data
    mesh: Mesh = Mesh()
    sharding: Sharding = Sharding()
    checkpoint: Checkpoint = Checkpoint()
    eval: Eval = Eval()
    log: Log = Log()
