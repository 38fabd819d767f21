"""The compiled programs that write text: take up prompts, and write until there is something to do for the host."""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp

from looplm.infer.board import Board, Counts
from looplm.infer.cache import Policy, new_cache
from looplm.infer.exit_rule import ExitRule
from looplm.infer.items import Contrast, Engine, Items
from looplm.infer.sampling import Sampling
from looplm.infer.schedule.scheduler import Scheduler, Writer
from looplm.model.cache import Cache
from looplm.model.functional import FunctionalLM, Params, compute_dtype


@dataclass(frozen=True)
class Plan:
    """What is static of writing text; a program is compiled for it."""

    num_loops: int
    """Loops of a token, at most."""
    exit: ExitRule | None
    """When a token leaves before; None: never."""
    kv: Policy
    scheduler: Scheduler
    num_ids: int
    """Ids that may be written; a vocabulary may be padded above what the tokenizer knows."""
    batch_size: int
    """B: rows that are written at the same time."""
    num_places: int
    """T: tokens of a row at most, prompt and all."""
    contrast: Contrast | None = None
    step_size: float = 1.0
    warm_start: bool = False
    prompt_exits: bool = False
    """Whether tokens of a prompt leave as written ones do; else they run all loops."""

    def writer(
        self, lm: FunctionalLM, params: Params, sampling: Sampling, stream_B: jax.Array, end_ids_N: jax.Array
    ) -> Writer:
        """Bind the model; inside a traced function."""
        model = lm.bind(params)
        halting = self.exit.build(model) if self.exit else model.halting
        engine = Engine(
            model, halting, self.num_loops, compute_dtype(lm.config), self.num_places, self.num_ids, stream_B,
            exact=self.kv.exact, contrast=self.contrast, step_size=self.step_size,
        )  # fmt: skip
        return Writer(engine, sampling, end_ids_N, warm_start=self.warm_start)


@partial(jax.jit, static_argnums=(0, 1))
def empty_board(lm: FunctionalLM, plan: Plan, params: Params) -> Board:
    """Make a board without texts."""
    B, T = plan.batch_size, plan.num_places
    cache = new_cache(lm.config, batch_size=B, length=T, policy=plan.kv, dtype=compute_dtype(lm.config))
    zeros_B, zeros_BT = jnp.zeros(B, jnp.int32), jnp.zeros((B, T), jnp.int32)
    board = Board(
        cache, zeros_BT, zeros_BT, zeros_B, zeros_B, zeros_B == 0, jnp.zeros(B, jnp.uint32), (), Counts.zero()
    )
    writer = plan.writer(lm, params, Sampling(), board.stream_B, jnp.zeros(0, jnp.int32))
    return board._replace(items=plan.scheduler.empty(writer, B, board))


@partial(jax.jit, static_argnums=(0, 1), donate_argnames="board")
def take_up(
    lm: FunctionalLM,
    plan: Plan,
    params: Params,
    board: Board,
    sampling: Sampling,
    end_ids_N: jax.Array,
    row_G: jax.Array,
    tokens_GP: jax.Array,
    length_G: jax.Array,
    room_G: jax.Array,
    stream_G: jax.Array,
) -> Board:
    """Put prompts on rows of the board, in place of what is there.

    All tokens of the prompts go through the loops in one pass: through all of them, of which an exit rule selects one
    for the last token; or, with `Plan.prompt_exits`, each up to its exit, and loops after the last exit do not run.
    Then the first token is drawn.

    Args:
        row_G: B for those that stand for no prompt.
        tokens_GP: prompts, padded on the right.
        length_G: their lengths.
        room_G: how many tokens a row may have.
        stream_G: random streams.
    """
    P, B = tokens_GP.shape[1], plan.batch_size
    gone_B = jnp.zeros(B, bool).at[row_G].set(True, mode="drop")
    board = board._replace(
        tokens_BT=board.tokens_BT.at[row_G, :P].set(tokens_GP, mode="drop"),
        length_B=board.length_B.at[row_G].set(length_G, mode="drop"),
        room_B=board.room_B.at[row_G].set(room_G, mode="drop"),
        stream_B=board.stream_B.at[row_G].set(stream_G, mode="drop"),
        ended_B=board.ended_B & ~gone_B,
        items=board.items.without(gone_B) if isinstance(board.items, Items) else board.items,
    )
    writer = plan.writer(lm, params, sampling, board.stream_B, end_ids_N)
    engine = replace(writer.engine, exact=not plan.prompt_exits, prompt_B=board.length_B)
    positions_GP = jnp.broadcast_to(jnp.arange(P), tokens_GP.shape)
    live_GP = positions_GP < length_G[:, None]
    items, cache = engine.enter(board.cache, tokens_GP, positions_GP, live_GP, row_G)

    def goes_on(at: tuple[Items, Cache]) -> jax.Array:
        return jnp.any(at[0].live_NS & ~engine.left(at[0]))

    def advance(at: tuple[Items, Cache]) -> tuple[Items, Cache]:
        items, cache = engine.advance(at[1], at[0], together=True)
        # Tokens that go on see those that have left.
        return items, engine.settle(cache, items, items.live_NS & engine.left(items))

    items, cache = jax.lax.while_loop(goes_on, advance, (items, cache))
    last_G = length_G - 1
    logits_G1V, cache = engine.leave(cache, items, only_N=last_G)
    board = board._replace(cache=cache)
    token_G1 = writer.draw(board, logits_G1V, row_G, last_G[:, None])
    loops_G1 = jnp.take_along_axis(engine.loops(items), last_G[:, None], axis=1)
    if plan.warm_start:
        board = board._replace(items=board.items.put(row_G, items.at(last_G)))

    def of_rows(x_G1: jax.Array) -> jax.Array:
        return jnp.zeros((B, 1), jnp.int32).at[row_G].set(x_G1, mode="drop")

    return board.commit(of_rows(token_G1), of_rows(loops_G1), gone_B.astype(jnp.int32), writer.end_ids_N)


@partial(jax.jit, static_argnums=(0, 1), donate_argnames="board")
def write(
    lm: FunctionalLM,
    plan: Plan,
    params: Params,
    board: Board,
    sampling: Sampling,
    end_ids_N: jax.Array,
    most_ticks: int,
    until_one_ends: bool,
) -> Board:
    """Let the scheduler write until no row goes on, or one of them ends, or it has had so many ticks."""
    writer = plan.writer(lm, params, sampling, board.stream_B, end_ids_N)
    board = plan.scheduler.start(writer, board)
    num_active = jnp.sum(board.active_B)

    def goes_on(at: tuple[jax.Array, Board]) -> jax.Array:
        active_B = at[1].active_B
        one_ended = until_one_ends & (jnp.sum(active_B) < num_active)
        return (at[0] < most_ticks) & jnp.any(active_B) & ~one_ended

    def tick(at: tuple[jax.Array, Board]) -> tuple[jax.Array, Board]:
        return at[0] + 1, plan.scheduler.tick(writer, at[1])

    return jax.lax.while_loop(goes_on, tick, (jnp.int32(0), board))[1]
