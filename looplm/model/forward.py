"""The forward pass over whole sequences, ready to run; this is what an objective gets."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax

from looplm.config.schema import Place, RelativePositions
from looplm.metrics.loop_stats import LoopStatistics, loop_statistics
from looplm.model.cache import NO_CACHE, Cache, KVCache
from looplm.model.context import Context
from looplm.model.depth import Depth
from looplm.model.halting import Halting
from looplm.model.inputs import Inputs
from looplm.model.lm import LoopLM
from looplm.model.loop import run_loops, select, written_out
from looplm.model.memory import Memory, behind
from looplm.model.output import Carry, Output, Reads
from looplm.model.report import Report
from looplm.ops.attention import Asked, Mask, prepare
from looplm.ops.scopes import WINDOW
from looplm.sharding.collective import gather_sequence, lay_out, split_sequence

LOOKBACK = 2
"""The statistics compare the last loop's state with the two before it."""


class Readings(NamedTuple):
    """What was read of T loops."""

    made: Any
    """What the caller's `then` made of each."""
    report: Report
    """The coda's."""
    active_TB: jax.Array | None = None
    """Which of them did run; None: all of them."""
    cache: KVCache | None = None
    """The coda's."""


@dataclass(frozen=True)
class Forward:
    """A pass that is ready to run. Its caller says which loops are read, and what is made of each.

    `dataclasses.replace` gives the same pass from another state, or to another depth.
    """

    model: LoopLM
    tokens_BS: jax.Array
    """Ids below the vocabulary size, int32."""
    context: Context
    """Positions, mask and how to run."""
    depth: Depth
    """How many loops, and which of them carry a gradient."""
    dtype: jax.typing.DTypeLike
    """Compute type of the matrix products."""
    start: Any = None
    """Replaces the first state; a tree like that of the core."""
    fresh_B: jax.Array | None = None
    """True for sequences that begin with the core's own first state all the same, bool. None: none of them."""
    halting: Halting | None = None
    """Replaces the model's own rule. All loops run; the rule selects what is read."""
    per_loop: Any = None
    """What every loop gets for itself, cut by its number (see `run_loops`); the core says what it may be."""
    memory: Memory | None = None
    """What layers of the loops see from before the sequence; it takes the place of `per_loop`."""
    cache: Cache = NO_CACHE
    """Keys and values of earlier positions."""
    with_statistics: bool = False
    """Whether to measure what the last loop does to the state."""
    statistics_of_all: bool = False
    """Whether the statistics are of all loops of the window, leaves (R, ...), and not of the last alone."""
    teacher: "Forward | None" = None
    """Another model's pass over the same tokens, for objectives that learn from its predictions."""
    step: jax.Array | None = None
    """Number of the training step, from 0, int32, for weights that change with it; None outside of training."""
    num_steps: int | None = None
    """Steps of the training; None outside of it."""
    ends_B: jax.Array | None = None
    """Sequences that are not gone on with after this pass, bool, for objectives; None: all of them."""

    def __call__(
        self,
        reads: Reads = "last",
        then: Callable[..., Any] = lambda hidden_BSD: hidden_BSD,
        *,
        beside_last: bool = False,
    ) -> Output:
        """Run the model.

        Args:
            reads: which loops of the window are read. `last` is what the halting rule makes of all loops.
            then: called with what the head reads, (B, S, D), of one loop after the other. Only what it returns is kept,
                so hidden states of several loops are never in memory together.
            beside_last: also call it with what the head reads of the window's last loop, without gradient.
        """
        model, depth, cache, read = self.model, self.depth, self.cache, self.model.core.read
        context = self._prepared_context()
        inputs, entered = model.enter(self.tokens_BS, context, self.dtype, cache.prelude)
        context = replace(context, predict=model.predictor(context, entered, cache.coda))
        state = self._first_state(inputs, context)
        halting = self.halting or model.halting
        body = model.body(self._remembering(context), halting, self._given())
        wants_all = not isinstance(reads, str) or reads == "all"
        trail = (jax.lax.stop_gradient(read(state)),) * (LOOKBACK if self.with_statistics else 0)
        last, (h_RBSD, gate_logits_RBS, statistics_R), block_report = run_loops(
            body.step,
            body.parameters,
            Carry(state, halting.init(read(state)), cache.block, trail),
            inputs,
            depth,
            per_loop=body.per_loop,
            keep=self._keeper(wants_all),
            remat=context.remat,
            unroll=context.unroll,
            numbered=halting.gathers,
        )

        def leave(h_BSD: jax.Array, cache: KVCache | None = None) -> tuple[Any, KVCache | None, Report]:
            hidden_BSD, cache, report = model.leave(h_BSD, context, entered, cache)
            return then(hidden_BSD, *beside), cache, report

        beside = (jax.lax.stop_gradient(model.leave(h_RBSD[-1], context, entered)[0]),) if beside_last else ()
        if wants_all:
            readings = self._read_window(leave, reads, h_RBSD)
        else:
            made, coda_cache, report = leave(halting.finish(last.halt, read(last.state)), cache.coda)
            made, report = jax.tree.map(lambda leaf: leaf[None], (made, report))
            readings = Readings(made, report, cache=coda_cache)
        return Output(
            readings.made,
            last.state,
            last.halt,
            None if gate_logits_RBS is None else lay_out(gate_logits_RBS, "loops", "batch", "sequence"),
            model.sequence_gate(read(last.state), context.counted_BS) if model.sequence_gate else None,
            depth,
            readings.active_TB,
            said(prelude=entered.report, block=block_report, coda=readings.report),
            statistics_R if self.statistics_of_all else self._statistics(last),
            Cache(entered.cache, last.cache, readings.cache),
        )

    def _keeper(self, wants_all: bool) -> Callable[[Carry], tuple]:
        """Return what is kept of the carry after a loop: what the head reads, the gate's logit, the statistics."""
        model, read = self.model, self.model.core.read

        def keep(carry: Carry) -> tuple[jax.Array | None, jax.Array | None, LoopStatistics | None]:
            h_BSD = read(carry.state)
            statistics = self._statistics(carry) if self.statistics_of_all else None
            gate_BS = model.gate(model.of_tokens(h_BSD)) if model.gate else None
            return h_BSD if wants_all else None, gate_BS, statistics

        return keep

    def _prepared_context(self) -> Context:
        front = self.model.front
        context = self.context if front is None else front.lengthened(self.context)
        return self._prepared(context, context.mask)

    def _prepared(self, context: Context, mask: Mask) -> Context:
        config = self.model.config
        biased = isinstance(config.positions, RelativePositions)
        asked = Asked(context.positions_BS.shape[1], self.dtype, config.head_size, biased)
        return replace(context, mask=prepare(mask, asked))

    def _remembering(self, context: Context) -> Context:
        """Return the context of the loops: prelude and coda see the sequence alone."""
        return context if self.memory is None else self._prepared(context, behind(self.context.mask, self.memory))

    def _given(self) -> Any:
        return self.per_loop if self.memory is None else self.memory.states_RLBMD

    def _statistics(self, carry: Carry) -> LoopStatistics | None:
        """Measure what the last loop did to the state; None where the states before it were not remembered."""
        if not carry.trail:
            return None
        seen = (self.model.core.read(carry.state), *carry.trail)
        states = [gather_sequence(self.model.of_tokens(h_BSD)) for h_BSD in seen]
        return loop_statistics(*states, counted_BS=self.context.counted_BS)

    def _first_state(self, inputs: Inputs, context: Context) -> Any:
        if self.start is None:
            return self.model.core.init_state(inputs, context)
        start = jax.tree.map(lambda leaf: split_sequence(leaf.astype(self.dtype)), self.start)
        if self.fresh_B is None:
            return start
        return select(self.fresh_B, self.model.core.init_state(inputs, context), start)

    def _read_window(self, leave: Callable[[jax.Array], tuple], reads: Reads, h_RBSD: jax.Array) -> Readings:
        """Read loops of the window, all or those at the given places, one after the other."""
        assert self.cache.coda is None, "the coda's cache belongs to one depth"
        active_RB = self.depth.active_RB
        if not isinstance(reads, str):
            h_RBSD, active_RB = jax.tree.map(lambda leaf: leaf[reads], (h_RBSD, active_RB))
        with jax.named_scope(WINDOW):
            leave = leave if self.context.remat == "none" else jax.checkpoint(leave)
            walk = written_out if self.context.unroll else jax.lax.scan
            _, (made, _, report) = walk(lambda _, h_BSD: (None, leave(h_BSD)), None, h_RBSD)
        return Readings(made, report, active_RB)


def said(*, prelude: Report, block: Report, coda: Report) -> dict[Place, Report]:
    """Leave out the stacks that report nothing."""
    reports: dict[Place, Report] = {"prelude": prelude, "block": block, "coda": coda}
    return {place: report for place, report in reports.items() if not report.empty}
