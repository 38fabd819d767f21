"""How many FLOPs a token costs, in closed form: what `looplm/train/flops.py` has to count in a traced step.

Only matrix products are counted, a multiplication and an addition each; everything is per token of a sequence.

    layer      a = 2 (D (N + K) H + w + f) + 4 N H k           k keys that a query meets
    values, outputs  w = D (N + K) H, with E_a experts a head D (N + K) (E_a H + E_a): experts and routers
    dense      f = m D F                                       m = 3 for SwiGLU, else 2
    experts    f = D E + n m D F_e + 3 D F_s                   router; the n experts of a token; the shared expert
    value gate v = 2 C K, for the layers that have a value embedding: A(x) = x a + (those of x layers) v
    injection  i = 2 (2 D) D concat, 2 D D diagonal, else 0
    read-out   r = 2 D D, gate g = 2 D, head h = 2 E V, embeddings 0
    ends       u = 2 E D where embeddings have a width E of their own, else E = D; before the head q = 2 D E, or none
    memory     of M places, in the block: k is M + S, and m = 4 D K H M / S more a layer, for their keys and values

    forward  = u + A(prelude) + R (A(L) + i) + t g + n (r + A(coda) + q + h)
    backward = 2 (u + A(prelude), if reached) + 2 t (A(L) + i + g) + 2 n (r + A(coda) + q + h)

R loops, the last t of them with gradient; n loops are read: 1 (final), 2 (elastic), t (all of the window) or m
(sampled heads). A
product costs two in the backward pass, one for each factor. No gradient enters the loops before the last t. It reaches
the prelude through the input of a loop with gradient, or through the first state if t = R. In training, the diagonal
injection is computed R - t + 1 times forward: its product does not depend on the loop, and JAX takes it out of the scan
of the last t. The gate-only objective costs one product backward, for the gate's weights; where the objective does not
read the gate, it costs nothing.

k is S for a kernel that masks what it has computed (`causal=False`: the XLA reference), and the mean number of keys in
sight for one that skips the rest (`causal=True`). MFU takes the latter; figures without the causal half are higher.

Of the shipped parts only, and not of:
- norms, softmax, rotary positions, the optimizer and the padding of the chunked head;
- conditioning by a trajectory and the objective that draws one, which runs two passes;
- the empty places of a capacity: a capacity_factor times what is counted is done;
- packed documents and prefixes. The experts of an attention are all computed, whichever a token chose, and all counted;
  with one expert the values have no router;
- idle work: with a drawn depth, zeros go back through a prelude that no gradient reaches (2 A(prelude)), and the loops
  that a shallow step skips are read where all are.

Source: the stack as in arXiv 2203.15556, appendix F; the loop terms are derived.
"""

import math
from dataclasses import dataclass, fields, replace
from typing import Literal, NamedTuple

from looplm.config.schema import (
    ConcatInjection,
    DiagonalInjection,
    ElasticCrossEntropy,
    ExpectedCrossEntropy,
    FeedForward,
    FinalCrossEntropy,
    GateImprovement,
    InputState,
    MixtureAttention,
    Model,
    MoE,
    NoInjection,
    Objective,
    Place,
    SwiGLU,
    WeightedCrossEntropy,
)


class Part(NamedTuple):
    """FLOPs per token."""

    forward: float
    backward: float = 0.0
    recomputed: float = 0.0
    """Forward products done again in the backward pass; see `rematerialised`."""


@dataclass(frozen=True)
class Flops:
    """FLOPs per token, of all devices together, by the part of the model that does them."""

    widening: Part
    """From the embeddings' width to the model's."""
    prelude: Part
    loops: Part
    """The shared block in all loops."""
    injection: Part
    gate: Part
    read_out: Part
    coda: Part
    narrowing: Part
    """What the head has before it."""
    head: Part

    @property
    def parts(self) -> dict[str, Part]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def forward(self) -> float:
        return sum(part.forward for part in self.parts.values())

    @property
    def backward(self) -> float:
        return sum(part.backward for part in self.parts.values())

    @property
    def total(self) -> float:
        """Model FLOPs, forward and backward: what has to be done. The numerator of MFU."""
        return self.forward + self.backward

    @property
    def hardware(self) -> float:
        """Hardware FLOPs, also what is recomputed: what is done. The numerator of HFU."""
        return self.total + sum(part.recomputed for part in self.parts.values())


def forward_flops(model: Model, *, sequence_length: int, num_loops: int, num_reads: int, causal: bool = True) -> Flops:
    """A forward pass in which coda and head read `num_reads` loops (a depth sweep: all), and the gate all loops."""
    keys, width = visible_keys(model, sequence_length) if causal else sequence_length, model.embedding_width
    M, recalled = model.memory_length, model.block_layers * 4.0 * model.dim * model.kv_heads * model.head_size
    return Flops(
        widening=Part(2.0 * width * model.dim if model.embedding_dim is not None else 0.0),
        prelude=Part(_stack(model, "prelude", keys)),
        loops=Part(num_loops * (_stack(model, "block", keys + M) + recalled * M / sequence_length)),
        injection=Part(num_loops * _injection(model)),
        gate=Part(num_loops * _gate(model)),
        read_out=Part(num_reads * 2.0 * model.dim**2 if model.read_out else 0.0),
        coda=Part(num_reads * _stack(model, "coda", keys)),
        narrowing=Part(num_reads * 2.0 * model.dim * width if model.head_transform else 0.0),
        head=Part(num_reads * 2.0 * width * model.vocab_size),
    )


def training_flops(
    model: Model, objective: Objective, *, sequence_length: int, num_loops: int, trained_loops: int, causal: bool = True
) -> Flops:
    """A training step whose gradient goes through the last `trained_loops` of `num_loops` loops."""
    num_reads = _num_reads(objective, trained_loops)
    once = forward_flops(
        model, sequence_length=sequence_length, num_loops=num_loops, num_reads=num_reads, causal=causal
    )
    products = num_loops - trained_loops + 1 if isinstance(model.injection, DiagonalInjection) else num_loops
    gated = isinstance(objective, ExpectedCrossEntropy | GateImprovement)
    gate = trained_loops * _gate(model) if gated else 0.0
    once = replace(once, injection=Part(products * _injection(model)), gate=Part(gate))
    if isinstance(objective, GateImprovement):
        return replace(once, gate=Part(once.gate.forward, once.gate.forward))

    reached = not isinstance(model.injection, NoInjection) or (
        isinstance(model.state_init, InputState) and trained_loops == num_loops
    )
    return Flops(
        widening=Part(once.widening.forward, 2 * once.widening.forward if reached else 0.0),
        prelude=Part(once.prelude.forward, 2 * once.prelude.forward if reached else 0.0),
        loops=Part(once.loops.forward, 2 * once.loops.forward * trained_loops / num_loops),
        injection=Part(once.injection.forward, 2 * trained_loops * _injection(model)),
        gate=Part(once.gate.forward, 2 * once.gate.forward),
        read_out=Part(once.read_out.forward, 2 * once.read_out.forward),
        coda=Part(once.coda.forward, 2 * once.coda.forward),
        narrowing=Part(once.narrowing.forward, 2 * once.narrowing.forward),
        head=Part(once.head.forward, 2 * once.head.forward),
    )


def rematerialised(
    flops: Flops,
    model: Model,
    objective: Objective,
    remat: Literal["none", "layer", "loop", "names", "offload"],
    *,
    num_loops: int,
) -> Flops:
    """The counts of `training_flops`, with what the backward pass computes again under `loop.remat`.

    - All but `none`: the logits of the cross-entropy.
    - `layer`: every layer that has a gradient; its last product only where a norm needs the result. Where an objective
      reads several loops, also what lies between a loop and the head, once more: nothing of it is kept.
    - `loop`, `offload`: also every trained loop, injection included, to get the inputs of its layers back.
    - `names`: as `loop`, but in the layers' turn without the last products of attention and feed-forward.

    Approximate: XLA may drop or add recomputation, and a flash kernel computes q k again on its own. The gate-only
    objective needs no recomputation, but the program runs its loops again under `loop`, `names` and `offload`.
    """
    num_reads = flops.head.forward / (2 * model.embedding_width * model.vocab_size)
    once = {
        "prelude": flops.prelude.forward,
        "loops": flops.loops.forward / num_loops,
        "coda": flops.coda.forward / num_reads,
    }
    places: dict[str, Place] = {"prelude": "prelude", "loops": "block", "coda": "coda"}
    times: dict[str, float] = {}
    if remat != "none":
        times = {"head": 1.0} | {
            name: 1 - _kept(model, places[name], remat) / cost for name, cost in once.items() if cost
        }
    if remat in ("loop", "names", "offload"):
        times |= {"loops": times["loops"] + 1, "injection": 1.0}
    if remat != "none" and not isinstance(objective, FinalCrossEntropy | GateImprovement):
        times |= {"read_out": 1.0, "narrowing": 1.0, "coda": times.get("coda", 0.0) + 1}
    # What was done forward for the part that has a gradient is half of its backward cost.
    again = {name: times.get(name, 0.0) * part.backward / 2 for name, part in flops.parts.items()}
    return Flops(**{name: part._replace(recomputed=again[name]) for name, part in flops.parts.items()})


def visible_keys(model: Model, sequence_length: int) -> float:
    """Mean number of keys that a query sees, in one document that fills the sequence and has no prefix."""
    window = min(model.attention_window or sequence_length, sequence_length)
    past = window - window * (window - 1) / (2 * sequence_length)
    return 2 * past - 1 if model.attention_mask == "full" else past


def _stack(model: Model, place: Place, keys: float) -> float:
    """The layers of prelude, block or coda, once."""
    heads, kv_heads, count = model.num_heads, model.kv_heads, model.layers_of(place)
    width = model.head_size
    attention = 4 * model.dim * width * (heads + kv_heads) + 4 * heads * width * keys
    if isinstance(mixture := model.attention, MixtureAttention):
        more = (mixture.num_experts - 1) * width * (heads + kv_heads)
        attention += 2 * model.dim * (more + mixture.num_experts * (heads + kv_heads * mixture.routed_values))
    total = count * attention + sum(_feed_forward(model, kind) for kind in _kinds(model, place))
    if (embedding := model.value_embedding) is None:
        return total
    return total + math.ceil(count / embedding.every) * 2 * embedding.gate_channels * kv_heads


def _kinds(model: Model, place: Place) -> list[FeedForward]:
    """The feed-forward of every layer."""
    kind = model.feed_forward_of(place)
    dense = kind.dense_layers if isinstance(kind, MoE) else ()
    return [kind.dense if isinstance(kind, MoE) and i in dense else kind for i in range(model.layers_of(place))]


def _feed_forward(model: Model, kind: FeedForward) -> float:
    if isinstance(kind, MoE):
        matrices = 3 if kind.expert == "swiglu" else 2
        widths = matrices * kind.experts_per_token * (kind.expert_dim or model.hidden_dim) + 3 * kind.shared_dim
        return 2.0 * model.dim * (kind.num_experts + widths)
    return 2.0 * model.dim * model.hidden_dim * (3 if isinstance(kind, SwiGLU) else 2)


def _kept(model: Model, place: Place, remat: str) -> float:
    """Last products of the branches of a stack that are not done again where a layer is."""
    kept = 0.0
    if model.norm_placement in ("pre", "peri") or remat == "names":
        for kind in _kinds(model, place):
            width = model.hidden_dim
            if isinstance(kind, MoE):
                width = kind.experts_per_token * (kind.expert_dim or model.hidden_dim) + kind.shared_dim
            kept += 2.0 * model.dim * width
    if remat == "names":
        experts = model.attention.num_experts if isinstance(model.attention, MixtureAttention) else 1
        kept += 2.0 * model.dim * model.num_heads * experts * model.head_size * model.layers_of(place)
    return kept


def _injection(model: Model) -> float:
    match model.injection:
        case ConcatInjection():
            return 4.0 * model.dim**2
        case DiagonalInjection():
            return 2.0 * model.dim**2
        case _:
            return 0.0


def _gate(model: Model) -> float:
    return 2.0 * model.dim if model.exit_gate else 0.0


def _num_reads(objective: Objective, window: int) -> int:
    """Loops that get a coda and a head."""
    if isinstance(objective, FinalCrossEntropy):
        return 1
    if isinstance(objective, ElasticCrossEntropy):
        return 2
    sampled = objective.sampled_heads if isinstance(objective, ExpectedCrossEntropy | WeightedCrossEntropy) else None
    return min(sampled or window, window)
