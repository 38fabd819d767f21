"""HRM (arXiv 2506.21734), TRM (arXiv 2510.04871) and URM (arXiv 2512.14693): names of sapientinc/HRM,
SamsungSAILMontreal/TinyRecursiveModels and UbiquantAI/URM, which grew out of one another.

Their code writes no config.json: it is to hold the keys of `arch` in their config (`all_config.yaml`), with `arch.name`
as `arch`, and the sizes of the data that the code adds (`seq_len`, `vocab_size`, `num_puzzle_identifiers`). A loop of
ours is one slow step of HRM and TRM, and one of URM's only state; `looplm.load` gives one segment.
"""

import math
from typing import Annotated, ClassVar

from looplm.checkpoint.adapters.base import Official, Part, linear, vector
from looplm.checkpoint.adapters.config import OfficialConfig, only
from looplm.checkpoint.adapters.hugging_face import CLASS, STORED
from looplm.config.schema import (
    AddInjection,
    ConvSwiGLU,
    FanInInit,
    FinalCrossEntropy,
    Front,
    Ids,
    LearnedPositions,
    Loop,
    Model,
    NoPositions,
    Rope,
    RotaryPositions,
    SequenceGate,
    SequenceMLP,
    TwoSpeedCore,
    VectorState,
)

OBJECTIVE = FinalCrossEntropy()
TRAINING = "says how segments follow each other in training"
WIDTHS = 256
"""Inner widths are rounded up to a multiple of this."""


class PuzzleConfig(OfficialConfig):
    WITHOUT_EFFECT: ClassVar[dict[str, str]] = {
        "arch": CLASS,
        "name": CLASS,
        "loss_type": TRAINING,
        "batch_size": TRAINING,
        "halt_exploration_prob": TRAINING,
        "halt_max_steps": TRAINING,
        "forward_dtype": STORED,
    }
    seq_len: int
    vocab_size: int
    num_puzzle_identifiers: int
    puzzle_emb_ndim: int = 0
    hidden_size: int
    expansion: float
    num_heads: int
    pos_encodings: Annotated[str, only("rope", "learned", "none")]
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    H_cycles: int
    L_cycles: int

    def front(self) -> Front | None:
        """The id's row, padded with zeros to whole places."""
        return self.ids_with_zeros(0) if self.puzzle_emb_ndim else None

    def ids_with_zeros(self, zeros: int) -> Front:
        return Front(ids=Ids(num_ids=self.num_puzzle_identifiers, dim=self.puzzle_emb_ndim), zeros=zeros)

    def places(self) -> int:
        """Places of a sequence, those in front included."""
        front = self.front()
        return self.seq_len + (front.places(self.hidden_size) if front else 0)

    def width(self, inputs: int) -> int:
        """Inner width of a SwiGLU."""
        return -(-round(self.expansion * inputs * 2 / 3) // WIDTHS) * WIDTHS

    def common(self) -> Model:
        """What the three have in common."""
        learned, scale = self.pos_encodings == "learned", math.sqrt(self.hidden_size)
        if learned:
            scale *= 0.707106781  # theirs, of the sum of embedding and position
        positions = {"rope": RotaryPositions(), "none": NoPositions()}
        return Model(
            vocab_size=self.vocab_size,
            dim=self.hidden_size,
            num_heads=self.num_heads,
            hidden_dim=self.width(self.hidden_size),
            block_layers=1,
            attention_mask="full",
            positions=LearnedPositions(length=self.places(), scale=scale) if learned else positions[self.pos_encodings],
            rope=Rope(theta=self.rope_theta),
            norm="unit",
            norm_eps=self.rms_norm_eps,
            norm_placement="post",
            final_norm=False,
            embedding_scale=scale,
            front=self.front(),
            injection=AddInjection(),
            state_init=VectorState(),
            sequence_gate=SequenceGate(outputs=2),
            init=FanInInit(effective_depth=2),
        )


class HRMConfig(PuzzleConfig):
    H_layers: int
    L_layers: int


class TRMConfig(PuzzleConfig):
    WITHOUT_EFFECT: ClassVar[dict[str, str]] = PuzzleConfig.WITHOUT_EFFECT | {
        "H_layers": "the official code ignores it",
    }
    L_layers: int
    no_ACT_continue: bool = True
    puzzle_emb_len: int = 0
    mlp_t: bool = False

    def front(self) -> Front | None:
        needed = -(-self.puzzle_emb_ndim // self.hidden_size)
        return self.ids_with_zeros(max(self.puzzle_emb_len, needed) - needed) if needed else None


class URMConfig(PuzzleConfig):
    WITHOUT_EFFECT: ClassVar[dict[str, str]] = PuzzleConfig.WITHOUT_EFFECT | {"loops": TRAINING}
    num_layers: int


def hrm(config: HRMConfig) -> Model:
    core = TwoSpeedCore(inner_loops=config.L_cycles, inner_backprop=1, high_layers=config.H_layers)
    return config.common().model_copy(update={"block_layers": config.L_layers, "core": core})


def trm(config: TRMConfig) -> Model:
    fields: dict = {"block_layers": config.L_layers, "core": TwoSpeedCore(inner_loops=config.L_cycles)}
    if config.mlp_t:
        length = config.places()
        fields["attention"] = SequenceMLP(length=length, hidden_dim=config.width(length))
    return config.common().model_copy(update=fields | {"sequence_gate": halts_alone(config.no_ACT_continue)})


def halts_alone(alone: bool) -> SequenceGate:
    """The second output is there all the same."""
    return SequenceGate(outputs=2, compares=not alone)


def urm(config: URMConfig) -> Model:
    fields = {"block_layers": config.num_layers, "feed_forward": ConvSwiGLU(), "sequence_gate": halts_alone(True)}
    return config.common().model_copy(update=fields)


def loop(config: HRMConfig | TRMConfig) -> Loop:
    return Loop(num_loops=config.H_cycles, backprop_loops=1)


def urm_loop(config: URMConfig) -> Loop:
    return Loop(num_loops=config.H_cycles * config.L_cycles, backprop_loops=config.L_cycles)


def tensors(model: Model) -> list[Official]:
    D, V, core = model.dim, model.vocab_size, model.core
    if isinstance(core, TwoSpeedCore):
        stacks = [("L_level.", "core.block", model.block_layers)]
        if core.high_layers is not None:
            stacks.append(("H_level.", "core.high_block", core.high_layers))
        first = {"H_init": "core.first", "L_init": "core.low_first"}
    else:
        stacks, first = [("", "core.block", model.block_layers)], {"init_hidden": "core.first"}
    found = {
        "embed_tokens.embedding_weight": vector("embedding.table", V, D),
        "lm_head.weight": vector("head", V, D),
        "q_head.weight": linear("sequence_gate.kernel", (D,), (2,)),
        "q_head.bias": vector("sequence_gate.bias", 2),
        **{name: vector(path, D) for name, path in first.items()},
    }
    if isinstance(model.positions, LearnedPositions):
        found["embed_pos.embedding_weight"] = vector("position_table.table", model.positions.length, D)
    if model.front is not None and model.front.ids is not None:
        ids = model.front.ids
        found["puzzle_emb.weights"] = vector("front.by_id.table", ids.num_ids, ids.dim)
    return [
        *(Official(f"inner.{name}", (part,)) for name, part in found.items()),
        *(
            Official(f"inner.{level}layers.{i}.{name}", parts, layer=i)
            for level, stack, count in stacks
            for i in range(count)
            for name, parts in _layer(model, f"{stack}.layers").items()
        ),
    ]


def _layer(model: Model, path: str) -> dict[str, tuple[Part, ...]]:
    D, F, N, K, H = model.dim, model.hidden_dim, model.num_heads, model.kv_heads, model.head_size
    attention, feed_forward = f"{path}.attention", f"{path}.feed_forward"
    layer = _swiglu("mlp", feed_forward, D, F)
    if isinstance(model.attention, SequenceMLP):
        return layer | _swiglu("mlp_t", attention, model.attention.length, model.attention.width)
    layer |= {
        "self_attn.qkv_proj.weight": (
            linear(f"{attention}.query.project.kernel", (D,), (N, H)),
            linear(f"{attention}.key.project.kernel", (D,), (K, H)),
            linear(f"{attention}.value.kernel", (D,), (K, H)),
        ),
        "self_attn.o_proj.weight": (linear(f"{attention}.output.kernel", (N, H), (D,)),),
    }
    if isinstance(model.feed_forward, ConvSwiGLU):
        kernel = model.feed_forward.kernel
        layer |= {
            "mlp.dwconv.weight": (Part(f"{feed_forward}.conv.kernel", (1, 0), (F, 1, kernel)),),
            "mlp.dwconv.bias": (vector(f"{feed_forward}.conv.bias", F),),
        }
    return layer


def _swiglu(name: str, path: str, inputs: int, width: int) -> dict[str, tuple[Part, ...]]:
    return {
        f"{name}.gate_up_proj.weight": (
            linear(f"{path}.gate.kernel", (inputs,), (width,)),
            linear(f"{path}.up.kernel", (inputs,), (width,)),
        ),
        f"{name}.down_proj.weight": (linear(f"{path}.down.kernel", (width,), (inputs,)),),
    }
