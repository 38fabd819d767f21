"""Batched generation: prompts in, tokens out. How it is computed changes no token."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from looplm.errors import UserError
from looplm.infer.board import Counts
from looplm.infer.cache import check_writes, parse_policy, usual_kv
from looplm.infer.continuation import Written
from looplm.infer.draft import parse_draft
from looplm.infer.exit_rule import ExitRule
from looplm.infer.items import Contrast
from looplm.infer.program import Plan
from looplm.infer.queue import Queue, Request, Watch
from looplm.infer.sampling import Sampling
from looplm.infer.schedule.depth_batching import DepthBatching
from looplm.infer.schedule.in_step import InStep
from looplm.infer.schedule.scheduler import Scheduler
from looplm.infer.schedule.wavefront import Wavefront
from looplm.model.functional import FunctionalLM, Params

PLACES_MULTIPLE = 32
"""The cache has a multiple of so many places, so that few programs are compiled."""


class Generation:
    """Writes what follows every prompt.

    Args:
        params: unsharded.
        prompts: token ids, at least one each.
        num_loops: loops for every token, at most.
        exit: when a token leaves before that. None: no token does.
        prompt_exits: whether tokens of the prompt leave too. Else they run all loops, of which the exit selects one for
            the last token.
        kv: which keys and values of earlier tokens a loop sees; see `parse_policy`.
        draft: how the model drafts for itself; see `parse_draft`.
        sampling: how tokens are drawn.
        seed: of all that is drawn; or one for every prompt.
        end_ids: a row stops after any of these tokens.
        num_ids: ids that may be written.
        batch_size: rows that are written at the same time; None: all prompts.
        contrast, step_size, warm_start: see `Engine` and `Writer`.
        watch: told of what is new, and may end a row; see `Watch`.
        scheduler: None chooses: drafts as asked, depth batching where tokens may leave early and rows are many, else
            all rows in step.

    Raises UserError for what is not known or cannot go together.
    """

    def __init__(
        self,
        lm: FunctionalLM,
        params: Params,
        prompts: Sequence[np.ndarray],
        *,
        num_loops: int,
        exit: ExitRule | None = None,
        kv: str | None = None,
        draft: str | int | None = None,
        max_tokens: int,
        sampling: Sampling,
        seed: int | Sequence[int] = 0,
        end_ids: Sequence[int] = (),
        num_ids: int,
        batch_size: int | None = None,
        contrast: Contrast | None = None,
        step_size: float = 1.0,
        warm_start: bool = False,
        prompt_exits: bool = False,
        watch: Watch | None = None,
        scheduler: Scheduler | None = None,
    ) -> None:
        self._lm, self._sampling, self._end_ids, self._watch = lm, sampling, end_ids, watch
        self._params = lm.apart(params) if jax.default_backend() == "cpu" else params
        check_writes(lm.config)
        kv = usual_kv(lm.config, kv, num_loops)
        policy = parse_policy(kv, num_loops)
        rows = min(batch_size or len(prompts), len(prompts))
        drafts = parse_draft(draft, num_loops)
        if prompt_exits and (exit is None or policy.exact):
            why = (
                "needs an exit rule"
                if exit is None
                else f"saves nothing with kv={kv!r}, where all tokens run all loops"
            )
            raise UserError(
                f"prompt_exits=true {why}; {'give exit' if exit is None else 'use kv=ragged'}, or leave it out"
            )
        if drafts is not None:
            if exit is not None or warm_start:
                other = "an exit rule" if exit is not None else "a warm start"
                raise UserError(f"draft={draft!r} cannot go with {other}: all tokens run all loops; leave one out")
            if policy.slots < num_loops:
                raise UserError(f"draft={draft!r} needs keys of every loop, and kv={kv!r} has fewer; use each")
            if lm.has_loop_parameters and isinstance(drafts, Wavefront):
                raise UserError(f"draft={draft!r} needs loops that share all parameters; use {drafts.loops}:4")
        if scheduler is None:
            leaves = exit is not None and not policy.exact and rows > 1 and not lm.has_loop_parameters
            scheduler = drafts or (DepthBatching() if leaves else InStep())
        longest = max(len(prompt) for prompt in prompts) + max_tokens
        places = -(-longest // PLACES_MULTIPLE) * PLACES_MULTIPLE
        self._plan = Plan(
            num_loops, exit, policy, scheduler, num_ids, rows, places,
            contrast=contrast, step_size=step_size, warm_start=warm_start, prompt_exits=prompt_exits,
        )  # fmt: skip
        streams_ = streams(prompts, seed)
        self._requests = [
            Request(prompt, max_tokens, int(stream)) for prompt, stream in zip(prompts, streams_, strict=True)
        ]
        self.counts: Counts | None = None
        """What was computed, once all is written."""

    def __iter__(self) -> Iterator[tuple[int, Written]]:
        """Yield (number of a prompt, what follows it) as they end."""
        queue = Queue(self._lm, self._params, self._plan, self._sampling, self._end_ids, watch=self._watch)
        yield from queue.run(self._requests)
        self.counts = queue.counts


def generate(
    lm: FunctionalLM, params: Params, prompts: Sequence[np.ndarray], *, temperature: float = 0.0, **options: Any
) -> list[Written]:
    """Continue every prompt; options as of `Generation`. A temperature of 0 takes the likeliest token."""
    sampling = Sampling(temperature=temperature or None)
    rows = dict(Generation(lm, params, prompts, sampling=sampling, **options))
    return [rows[number] for number in range(len(prompts))]


def streams(prompts: Sequence[np.ndarray], seed: int | Sequence[int]) -> np.ndarray:
    """Return the number of the random stream that every prompt uses, (B,) uint32.

    It depends on the seed, on the prompt and on how many like it came before. So a prompt is answered the same
    whatever stands beside it and in any order, and copies of one prompt differ.
    """
    seeds = [seed] * len(prompts) if isinstance(seed, int) else seed
    copies: Counter[tuple[int, bytes]] = Counter()
    stream_B = np.zeros(len(prompts), np.uint32)
    for row, (prompt, own) in enumerate(zip(prompts, seeds, strict=True)):
        ids = np.asarray(prompt, "<i4").tobytes()
        digest = hashlib.sha256(f"{own} {copies[own, ids]} ".encode() + ids).digest()
        stream_B[row] = int.from_bytes(digest[:4], "little")
        copies[own, ids] += 1
    return stream_B
