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


Injection = Annotated[NoInjection | AddInjection | ConcatInjection, Field(discriminator="kind")]


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
    norm_placement: Literal["pre", "sandwich"] = "pre"
    """`pre`: x + f(norm(x)). `sandwich`: x + norm(f(norm(x))), the second norm on the branch (Ouro)."""
    norm_eps: PositiveFloat = 1e-6
    norm_at_loop_end: bool = False
    """RMSNorm on the state at the end of every loop; what it gives enters the next loop (Ouro)."""
    final_norm: bool = True
    """RMSNorm before the head."""
    rope_theta: PositiveFloat = 10_000.0
    injection: Injection = NoInjection()
    exit_gate: ExitGate | None = None
    tie_embeddings: bool = False
    init_std: PositiveFloat = 0.02
    """Standard deviation of the weight matrices at initialisation."""
    dtype: Literal["auto", "bfloat16", "float32", "float64"] = "auto"
    """Compute type; `auto` is bfloat16 on accelerators and float32 on a CPU. Parameters are float32."""


# --- loop ------------------------------------------------------------------------------------------------------------


class FixedDepth(Section):
    """Every training step runs `loop.num_loops` loops."""

    kind: Literal["fixed"] = "fixed"


class UniformDepth(Section):
    """Every training step draws its number of loops uniformly, both ends included."""

    kind: Literal["uniform"] = "uniform"
    min_loops: PositiveInt = 1
    max_loops: PositiveInt


Depth = Annotated[FixedDepth | UniformDepth, Field(discriminator="kind")]


class Loop(Section):
    """How often the shared block runs, and how the gradient goes through it."""

    num_loops: PositiveInt
    """R: the depth of evaluation and generation, and of training when `depth` is fixed."""
    depth: Depth = FixedDepth()
    """The number of loops of a training step."""
    backprop_loops: PositiveInt | None = None
    """Gradient flows through the last so many loops; None means all."""
    remat: Literal["none", "layer", "loop"] = "loop"
    """What is recomputed in the backward pass: nothing, every layer, or every loop and in it every layer."""
    unroll: bool = False
    """Write the loops and layers out in the program: faster on a CPU, slower to compile; never on large models."""


# --- training --------------------------------------------------------------------------------------------------------


class FinalCrossEntropy(Section):
    """Cross-entropy after the last loop."""

    kind: Literal["final"] = "final"


class ExpectedCrossEntropy(Section):
    """Cross-entropy of every loop weighted by the exit distribution, minus an entropy bonus (arXiv 2510.25741)."""

    kind: Literal["expected"] = "expected"
    entropy_weight: NonNegativeFloat = 0.05
    """beta: nats of loss given for a nat of entropy of the exit distribution."""


Objective = Annotated[FinalCrossEntropy | ExpectedCrossEntropy, Field(discriminator="kind")]


class AdamW(Section):
    """AdamW; weight decay on matrices only."""

    kind: Literal["adamw"] = "adamw"
    beta1: Fraction = 0.9
    beta2: Fraction = 0.95
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.1


class Schedule(Section):
    """Linear warm-up to the peak, then the decay."""

    warmup_steps: NonNegativeInt = 0
    decay: Literal["constant", "linear", "cosine"] = "cosine"
    final_fraction: Fraction = 0.1
    """The rate of the last step, as a fraction of the peak."""


class Optim(Section):
    learning_rate: PositiveFloat
    """Peak learning rate."""
    optimizer: AdamW = AdamW()
    schedule: Schedule = Schedule()
    clip_norm: PositiveFloat | None = 1.0
    """The gradient is scaled down to this global norm; None means never."""


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
    tensor: int = 1
    """Heads, feed-forward and vocabulary are split."""


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
    checkpoint: Checkpoint = Checkpoint()
    eval: Eval = Eval()
    log: Log = Log()
