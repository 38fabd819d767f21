"""Mixtures of experts: a feed-forward, or projections of the attention, of which every token uses a part."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from looplm.config.schema.base import NonNegativeFloat, Section
from looplm.config.schema.parts import GELU, ConvReLU, ConvSwiGLU, ReLU, SquaredReLU, SwiGLU

GroupedBackend = Literal["auto", "reference", "ragged", "blocks", "tokamax"]
"""What multiplies the rows of every expert with its matrix."""


class Balance(Section):
    """What keeps the experts of a layer equally busy. Rules may be combined; all are off by default."""

    bias_rate: NonNegativeFloat = 0.0
    """After every step, a bias that only decides which experts are chosen moves by this much: up for experts with less
    than the mean load, down for the others (arXiv 2412.19437: 0.001)."""
    auxiliary_weight: NonNegativeFloat = 0.0
    """Weight of E sum_e f_e P_e: share of tokens that use expert e times its mean normalised score (arXiv 2101.03961).
    Its least value is about the number of experts per token."""
    auxiliary_over: Literal["sequence", "batch", "model"] = "sequence"
    """What f and P are means over: a sequence; all sequences of a micro-batch; those and all layers and loops (as the
    library transformers has it). Only the first does not depend on how a batch is cut into micro-batches."""
    entropy_weight: NonNegativeFloat = 0.0
    """Weight of minus the entropy of softmax(logits), averaged over a sequence and all loops, summed over layers
    (arXiv 2405.16039: 0.01)."""
    z_loss_weight: NonNegativeFloat = 0.0
    """Weight of the squared log-normaliser of the router's logits, which keeps them small (arXiv 2202.08906: 0.001)."""


class MoE(Section):
    """A router sends every token to some of the experts; their outputs are added, weighted by the router's scores."""

    kind: Literal["moe"] = "moe"
    num_experts: PositiveInt
    """E."""
    experts_per_token: PositiveInt
    """How many of them a token uses."""
    expert_dim: PositiveInt | None = None
    """Inner width of an expert; None means model.hidden_dim."""
    expert: Literal["swiglu", "relu"] = "swiglu"
    """silu(x W_gate) * (x W_up) W_down, or relu(x W_up) W_down (sigma-MoE, arXiv 2405.16039)."""
    shared_dim: NonNegativeInt = 0
    """Inner width of an expert that every token uses, with weight 1; 0 means there is none."""
    scores: Literal["softmax", "sigmoid"] = "softmax"
    """Of the router's logits, over all experts or each for itself; float32."""
    renormalise: bool = True
    """Whether the scores of the chosen experts are divided by their sum."""
    loop_biases: NonNegativeInt = 0
    """A learned bias on the logits for each of so many loops, and balance biases of their own; later loops use the
    last. 0 means that all loops share the biases."""
    router_loops: PositiveInt | None = None
    """So many loops have routers of their own, and balance biases, over the same experts; later loops use the last
    (arXiv 2610.01153). None: all loops share the router."""
    capacity_factor: PositiveFloat | None = None
    """In training, an expert takes at most this times the mean load of every sequence, earlier tokens first; what is
    above is dropped, and counted. A sequence is a window: of the documents packed into one, earlier ones take places
    from later ones. None means nothing is dropped. Evaluation and generation drop nothing."""
    backend: GroupedBackend = "auto"
    """What computes the experts' products if nothing is limited. `auto`: `blocks` on a CPU, `ragged` elsewhere.
    `ragged`: XLA's own. `blocks`: expert after expert, for CPUs. `tokamax`: its Mosaic kernel on a TPU, which
    needs looplm[kernels], and XLA's elsewhere. `reference`: every row times every matrix, to compare with."""
    dense_layers: tuple[NonNegativeInt, ...] = ()
    """Layers of the section (from 0) that have the dense feed-forward of model.hidden_dim instead."""
    dense: Annotated[SwiGLU | GELU | SquaredReLU, Field(discriminator="kind")] = SwiGLU()
    """Theirs."""
    balance: Balance = Balance()
    """How the load of the experts is kept even."""

    @property
    def bias_rows(self) -> int:
        """How many loops have balance biases of their own."""
        return self.router_loops or max(self.loop_biases, 1)


FeedForward = Annotated[SwiGLU | GELU | SquaredReLU | ReLU | ConvSwiGLU | ConvReLU | MoE, Field(discriminator="kind")]


class DenseAttention(Section):
    """One value and one output projection a head."""

    kind: Literal["dense"] = "dense"
    output_gate: bool = False
    """Every channel of a head's output is multiplied with the sigmoid of a linear map of what queries read (arXiv
    2505.06708)."""
    bias: bool = False
    """A learned bias on values and on what the output projection gives; `model.qk_bias` is that of queries and keys."""


class MixtureAttention(Section):
    """Value and output projections of every head are mixtures of experts, weighted by sigmoid scores (SwitchHead, arXiv
    2312.07987). A token's values are of the experts that it chose itself, the outputs of those that the query chose.
    With one expert only the output has a weight: the sigmoid of a gate."""

    kind: Literal["mixture"] = "mixture"
    num_experts: PositiveInt
    """Of a head."""
    experts_per_token: PositiveInt
    """How many of them a token uses."""
    entropy_weight: NonNegativeFloat = 0.0
    """Weight of minus the entropy of softmax(logits), averaged over a sequence and all loops; a mean over
    heads, summed over both projections and all layers (arXiv 2405.16039: 0.001)."""

    @property
    def routed_values(self) -> bool:
        """Whether values have a router."""
        return self.num_experts > 1


class SequenceMLP(Section):
    """A SwiGLU over the places of a sequence in place of attention, the same for all channels; the norms of its branch
    are over places too. All sequences have one length, and every token sees all (arXiv 2510.04871)."""

    kind: Literal["sequence_mlp"] = "sequence_mlp"
    length: PositiveInt
    """Places of a sequence, those in front of the tokens included."""
    hidden_dim: PositiveInt | None = None
    """Inner width; None means 8/3 of the length, up to a multiple of 256."""

    @property
    def width(self) -> int:
        """The inner width."""
        return self.hidden_dim or -(-round(4 * self.length * 2 / 3) // 256) * 256


Attention = Annotated[DenseAttention | MixtureAttention | SequenceMLP, Field(discriminator="kind")]
