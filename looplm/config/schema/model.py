"""The architecture."""

from typing import Literal

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from looplm.config.schema.adapter import LoRA
from looplm.config.schema.base import Section
from looplm.config.schema.core import (
    Core,
    InputState,
    SingleCore,
    StateInit,
    TwoSpeedCore,
)
from looplm.config.schema.halting import Halting, NeverHalting
from looplm.config.schema.memory import Memory
from looplm.config.schema.moe import Attention, DenseAttention, FeedForward, MoE
from looplm.config.schema.parts import (
    Conditioning,
    ExitGate,
    HeadTransform,
    Init,
    Injection,
    NoConditioning,
    NoInjection,
    NormalInit,
    Positions,
    ReadOut,
    Rope,
    RotaryPositions,
    SwiGLU,
    ValueEmbedding,
)
from looplm.config.schema.sequence import (
    Front,
    SequenceGate,
    SequenceHead,
)
from looplm.config.schema.streams import Streams

Place = Literal["prelude", "block", "coda"]
AttentionBackend = Literal["auto", "dense", "blockwise", "splash", "triton", "cudnn"]


class Model(Section):
    """The architecture: prelude, shared block, coda. How often the block is applied is in `Loop`."""

    vocab_size: PositiveInt
    """Tokens of the vocabulary (V); at least those of the tokenizer."""
    dim: PositiveInt
    """Width of the residual stream (D)."""
    embedding_dim: PositiveInt | None = None
    """Width of the embeddings (E), from which a linear map goes to `dim` (arXiv 1909.11942); None means `dim`, and no
    map."""
    embedding_norm: bool = False
    """A norm on the embeddings, what positions and types add included."""
    token_types: NonNegativeInt = 0
    """Kinds of tokens, each with a learned vector that is added to the embedding; 0 means that they have none."""
    num_heads: PositiveInt
    """Query heads (N)."""
    num_kv_heads: PositiveInt | None = None
    """Key/value heads (K); None means one per query head."""
    head_dim: PositiveInt | None = None
    """Size of a head (H); None means dim / num_heads."""
    hidden_dim: PositiveInt
    """Inner width of the feed-forward (F)."""
    front: Front | None = None
    """Places in front of the tokens."""
    prelude_layers: NonNegativeInt = 0
    """Layers before the loops."""
    block_layers: PositiveInt
    """Layers in the shared block (L)."""
    coda_layers: NonNegativeInt = 0
    """Layers after the loops."""
    feed_forward: FeedForward = SwiGLU()
    """The feed-forward of every layer."""
    prelude_feed_forward: FeedForward | None = None
    """Of the prelude's layers; None means `feed_forward`."""
    coda_feed_forward: FeedForward | None = None
    """Of the coda's layers; None means `feed_forward`."""
    attention: Attention = DenseAttention()
    """How queries, keys and values are made."""
    attention_mask: Literal["causal", "prefix", "full"] = "causal"
    """Whom a token sees in its document: what precedes it; also all tokens of the prefix, which ends where the first
    label is scored; everybody."""
    attention_window: PositiveInt | None = None
    """A token sees so many of the last tokens, itself included; None means all."""
    memory: Memory | None = None
    """What layers of the loops see from before the sequence; None means nothing."""
    attention_backend: AttentionBackend = "auto"
    """What computes whole sequences. `auto`: the first that can of `splash` on a TPU, of `cudnn` (Hopper and newer) and
    `triton` on a GPU; else `blockwise`, or `dense` (XLA, with all scores in memory) for short sequences. Any other is
    used, or refused before compiling. With a cache the kernels leave it to `auto`."""
    qk_norm: bool = False
    """RMSNorm on every head of queries and keys, before the rotation."""
    qk_norm_over: Literal["head", "all_heads"] = "head"
    """Whether that norm is of every head by itself, or of all heads together (OLMo 2, OLMoE)."""
    qk_norm_scale: bool = True
    """Whether that norm has a learned scale; without one, its eps is the machine epsilon (Parcae)."""
    qk_bias: bool = False
    """A learned bias per head on queries and keys, before the rotation."""
    positions: Positions = RotaryPositions()
    """How a layer knows where a token stands."""
    rope: Rope = Rope()
    """The rotation, where `positions` is `rotary`."""
    value_embedding: ValueEmbedding | None = None
    """An embedding of the token in the values of some layers; None means in none."""
    norm_placement: Literal["pre", "sandwich", "sandwich_sum", "peri", "post", "output"] = "pre"
    """`pre`: x + f(norm(x)). `sandwich`: x + norm(f(norm(x))) (Ouro). `sandwich_sum`: norm(x + f(norm(x))) (Huginn).
    `peri`: values and experts read x, all else norm(x), and x is added (MoEUT). `post`: norm(x + f(x)) (HRM).
    `output`: x + norm(f(x)) (OLMo 2)."""
    streams: Streams | None = None
    """Several residual streams in prelude, block and coda, around every branch of every layer; they begin and end with
    the stack of layers. None: one."""
    norm: Literal["rms", "layer", "layer_std", "unit"] = "rms"
    """RMSNorm, LayerNorm with a scale and a bias, the same over the unbiased standard deviation + eps (PyTorch ports of
    early transformers), or RMSNorm without a scale; norms of queries and keys are RMSNorm always."""
    norm_eps: PositiveFloat = 1e-6
    """Added to the mean square before its root."""
    norm_loops: PositiveInt | None = None
    """So many loops have scales of their own in the norms of the shared block's layers, later ones use the last. None:
    all loops share them."""
    attention_loops: PositiveInt | None = None
    """So many loops have an attention of their own in the shared block's layers, with its biases and the norms of
    queries and keys; later ones use the last (arXiv 2609.35751). None: all loops share it."""
    prelude_norm: bool = False
    """A norm on the prelude's output, before it is the loops' input (Parcae)."""
    norm_at_loop_end: bool = False
    """A norm on the state at the end of every loop; what it gives enters the next loop (Ouro). With two states, at the
    end of every call of a block (HRM-Text)."""
    norm_before_coda: bool = False
    """The final norm is also applied, with the same weights, before the coda (Huginn)."""
    final_norm: bool = True
    """A norm before the head."""
    residual_step: Literal["one", "inverse_loops"] = "one"
    """What a branch of the shared block is multiplied with before it is added: 1 or 1/R."""
    core: Core = SingleCore()
    """How the state moves in one loop."""
    halting: Halting = NeverHalting()
    """Who leaves the loops early, in training too; `looplm generate --exit` puts a rule in its place."""
    injection: Injection = NoInjection()
    """How the input enters every loop."""
    conditioning: Conditioning = NoConditioning()
    """What tells a loop which one it is."""
    state_init: StateInit = InputState()
    """What the first loop starts from."""
    exit_gate: ExitGate | None = None
    """What says, for every token and loop, how probable it is to leave; None means no gate."""
    sequence_gate: SequenceGate | None = None
    """What says, for every sequence, whether it may halt; None means no such gate."""
    sequence_head: SequenceHead | None = None
    """What classifies whole sequences; None means nothing does."""
    head_transform: HeadTransform | None = None
    """What stands between the last state and the head; None means nothing."""
    read_out: ReadOut | None = None
    """A map between the loops and the coda; None means the state itself."""
    tie_embeddings: bool = False
    """Whether the head is the embedding, transposed."""
    head_bias: bool = False
    """A learned bias per token of the vocabulary on the logits."""
    embedding_scale: PositiveFloat = 1.0
    """Embeddings, and what is in front of them, are multiplied with this."""
    logit_softcap: PositiveFloat | None = None
    """c * tanh(logits / c); None means no cap."""
    init: Init = NormalInit()
    """First values of the parameters."""
    adapter: LoRA | None = None
    """Parameters that are added to learn in place of the model's own."""
    dtype: Literal["auto", "bfloat16", "float32", "float64"] = "auto"
    """Compute type; `auto` is bfloat16 on accelerators and float32 on a CPU. Parameters are float32."""

    @property
    def embedding_width(self) -> int:
        """E."""
        return self.embedding_dim or self.dim

    @property
    def kv_heads(self) -> int:
        """K."""
        return self.num_kv_heads or self.num_heads

    @property
    def head_size(self) -> int:
        """H."""
        return self.head_dim or self.dim // self.num_heads

    @property
    def front_places(self) -> int:
        """Places in front of the tokens (P)."""
        return 0 if self.front is None else self.front.places(self.dim)

    @property
    def memory_length(self) -> int:
        """Places before the sequence that layers of the loops see (M), compressed ones included."""
        return 0 if self.memory is None else self.memory.compressed_length + self.memory.length

    @property
    def calls_per_loop(self) -> int:
        """How often a loop calls a block."""
        return self.core.inner_loops + 1 if isinstance(self.core, TwoSpeedCore) else 1

    @property
    def largest_block(self) -> int:
        """Layers of the block that has most."""
        high_layers = self.core.high_layers if isinstance(self.core, TwoSpeedCore) else None
        return max(self.block_layers, high_layers or 0)

    @property
    def num_ids(self) -> int:
        """Rows of the table of ids; 0 without one."""
        return 0 if self.front is None or self.front.ids is None else self.front.ids.num_ids

    @property
    def own_loops(self) -> dict[str, int]:
        """How many loops have a part of the shared block's layers for themselves, by its setting."""
        router = self.feed_forward.router_loops if isinstance(self.feed_forward, MoE) else None
        settings = {
            "norm_loops": self.norm_loops,
            "attention_loops": self.attention_loops,
            "feed_forward.router_loops": router,
        }
        return {name: loops for name, loops in settings.items() if loops is not None}

    def feed_forward_of(self, section: Place) -> FeedForward:
        """Of the prelude, the block or the coda."""
        own = {"prelude": self.prelude_feed_forward, "coda": self.coda_feed_forward}.get(section)
        return own or self.feed_forward

    def layers_of(self, section: Place) -> int:
        return {"prelude": self.prelude_layers, "block": self.block_layers, "coda": self.coda_layers}[section]
