"""What KV policies cost: held-out text, token by token, through the engine that writes.

The first half of every text is a prompt, which runs all its loops at once like any prompt; of the second half every
token is given, not drawn, so that all policies are asked the same. Deeper loops see earlier tokens of the second half
as the policy says, which no pass over whole sequences could show.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from looplm.config.schema import Run
from looplm.errors import UserError
from looplm.eval.bootstrap import interval, resampled_means
from looplm.eval.subject import Subject
from looplm.eval.texts import Texts, texts_of
from looplm.infer.cache import cache_bytes, new_cache, parse_policy
from looplm.infer.exit_rule import parse_exit
from looplm.infer.items import Items
from looplm.infer.program import Plan
from looplm.infer.sampling import Sampling
from looplm.infer.schedule.in_step import InStep
from looplm.metrics.kv_loss import KIND, KVLosses, KVPolicyLoss
from looplm.metrics.stored import file_name
from looplm.model.cache import Cache
from looplm.model.functional import FunctionalLM, Params, compute_dtype
from looplm.ops.cross_entropy import IGNORED

ALL = "all"
EACH = "each"
ROWS, LENGTH = 64, 128
"""Texts that are measured, and their tokens at most."""


class KVScores(NamedTuple):
    """Of N rows at S places behind their prompts."""

    nll_NS: np.ndarray
    """Nats; 0 where nothing is scored."""
    best_NS: np.ndarray
    """The likeliest successor."""
    loops_NS: np.ndarray
    """After how many loops it was read."""


def parse_policies(texts: Sequence[str], run: Run, exits: Sequence[str]) -> list[tuple[str, str | None]]:
    """Read what `--kv` of an evaluation says: (policy, exit rule or None), without an exit rule and under each of them.

    `all` stands for the usual ones. Raises UserError for what is no policy, or a model that writes no text.
    """
    if not texts:
        return []
    if run.model.attention_mask != "causal":
        raise UserError(
            f"--kv is about text that is written token by token, and model.attention_mask={run.model.attention_mask} "
            "answers in place; leave it out"
        )
    if jax.process_count() > 1:
        raise UserError("--kv is measured in one process; start it without --num-processes")
    R, found = run.loop.num_loops, list[tuple[str, str | None]]()
    for text in texts:
        usual = [
            "last",
            "first",
            f"anchor:{max(1, R // 2)}",
            f"ring:{max(1, R // 2)}",
            "each,bf16",
            "each,int8",
            "last,int8",
        ]
        for policy in usual if text == ALL else [text]:
            kept = parse_policy(policy, R)
            # Without exits, ragged is each.
            if kept.exact or policy.partition(",")[0] != "ragged":
                found.append((policy, None))
        found += [(policy, exit) for exit in exits for policy in (["ragged"] if text == ALL else [text])]
    return list(dict.fromkeys(found))


def measure_kv(subject: Subject, policies: Sequence[tuple[str, str | None]]) -> KVLosses:
    """Measure policies, each under an exit rule or None, against `each` at the full depth.

    Raises UserError where no text of the held-out data is long enough.
    """
    lm, R, texts = subject.lm, subject.run.loop.num_loops, texts_of(subject, rows=ROWS, length=LENGTH)
    params = jax.device_put(jax.device_get(subject.params), jax.devices()[0])
    params = lm.apart(params) if jax.default_backend() == "cpu" else params
    score = partial(score_policy, lm, params, texts, R)
    _, group_N = np.unique(texts.document_N, return_inverse=True)
    group_M = np.repeat(group_N, texts.scored_NS.sum(axis=1))

    def by_document(values_NS: np.ndarray) -> np.ndarray:
        return np.bincount(group_M, values_NS[texts.scored_NS])

    size = partial(cache_bytes, lm.config, batch_size=1, length=1, dtype=compute_dtype(lm.config))
    whole, full = score(EACH, None), size(policy=parse_policy(EACH, R))
    counts_G, base_G = by_document(texts.scored_NS), by_document(whole.nll_NS)
    measured = []
    for policy, exit in policies:
        found = score(policy, exit)
        change_G = by_document(found.nll_NS) - base_G
        low, high = interval(resampled_means(change_G[:, None], counts_G)[:, 0])
        bytes_ = size(policy=parse_policy(policy, R))
        scored = texts.scored_NS
        measured.append(
            KVPolicyLoss(
                policy=policy,
                exit=exit,
                loss=float(found.nll_NS[scored].mean()),
                change=float(change_G.sum() / counts_G.sum()),
                change_low=float(low),
                change_high=float(high),
                agreement=float((found.best_NS == whole.best_NS)[scored].mean()),
                mean_depth=float(found.loops_NS[scored].mean()),
                bytes_per_token=bytes_,
                share=bytes_ / full,
            )
        )
    return KVLosses(
        step=subject.step,
        ema=subject.ema,
        data=subject.held_out.name,
        num_tokens=int(counts_G.sum()),
        num_documents=len(counts_G),
        num_loops=R,
        loss=float(base_G.sum() / counts_G.sum()),
        policies=measured,
    )


def score_policy(lm: FunctionalLM, params: Params, texts: Texts, num_loops: int, kv: str, exit: str | None) -> KVScores:
    """Score the second halves of texts as the engine would write them; params: unsharded."""
    rows, length = texts.tokens_NT.shape
    plan = Plan(
        num_loops,
        parse_exit(exit, lm.config),
        parse_policy(kv, num_loops),
        InStep(),
        lm.config.vocab_size,
        rows,
        length,
    )
    places = int((texts.length_N - texts.prompt_N).max())
    found = _given(lm, plan, params, texts.tokens_NT, texts.labels_NT, texts.prompt_N, places)
    return KVScores(*(np.moveaxis(x, 0, 1) for x in jax.device_get(found)))


@partial(jax.jit, static_argnums=(0, 1, 6))
def _given(
    lm: FunctionalLM,
    plan: Plan,
    params: Params,
    tokens_NT: jax.Array,
    labels_NT: jax.Array,
    prompt_N: jax.Array,
    num_places: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return (loss, likeliest successor, loops), (S, N) each, of the tokens at `prompt_N` and behind."""
    N, T = tokens_NT.shape
    cache = new_cache(lm.config, batch_size=N, length=T, policy=plan.kv, dtype=compute_dtype(lm.config))
    engine = plan.writer(lm, params, Sampling(), jnp.arange(N, dtype=jnp.uint32), jnp.zeros(0, jnp.int32)).engine
    whole, positions_NT = replace(engine, exact=True), jnp.broadcast_to(jnp.arange(T), (N, T))
    items, cache = whole.enter(cache, tokens_NT, positions_NT, positions_NT < prompt_N[:, None])

    def of_prompt(_: jax.Array, at: tuple[Items, Cache]) -> tuple[Items, Cache]:
        return whole.advance(at[1], at[0], together=True)

    items, cache = jax.lax.fori_loop(0, plan.num_loops, of_prompt, (items, cache))
    _, cache = whole.leave(cache, items, only_N=prompt_N - 1)

    def token(cache: Cache, s: jax.Array) -> tuple[Cache, tuple[jax.Array, jax.Array, jax.Array]]:
        place_N1 = (prompt_N + s)[:, None]
        given_N1, label_N1 = (jnp.take_along_axis(x, place_N1, axis=1, mode="clip") for x in (tokens_NT, labels_NT))
        items, cache = engine.enter(cache, given_N1, place_N1, place_N1 < T)

        def goes_on(at: tuple[Items, Cache]) -> jax.Array:
            return jnp.any(at[0].live_NS & ~engine.left(at[0]))

        def advance(at: tuple[Items, Cache]) -> tuple[Items, Cache]:
            return engine.advance(at[1], at[0], together=True)

        items, cache = jax.lax.while_loop(goes_on, advance, (items, cache))
        logits_N1V, cache = engine.leave(cache, items)
        scored_N1 = (label_N1 != IGNORED) & (place_N1 < T)
        log_p_N1V = jax.nn.log_softmax(logits_N1V)
        nll_N1 = -jnp.take_along_axis(log_p_N1V, jnp.maximum(label_N1, 0)[..., None], axis=-1)[..., 0]
        best_N1 = jnp.argmax(logits_N1V, axis=-1)
        read = (jnp.where(scored_N1, nll_N1, 0), best_N1, engine.loops(items))
        return cache, tuple(x_N1[:, 0] for x_N1 in read)  # type: ignore[return-value]

    return jax.lax.scan(token, cache, jnp.arange(num_places))[1]


def add_to(folder: Path, new: KVLosses, other_data: str | None) -> KVLosses:
    """Return what was measured now, and of the same texts before: policies that are there keep their place."""
    try:
        old = KVLosses.read(folder / file_name(KIND, new.step, ema=new.ema, other_data=other_data))
    except UserError:
        old = None  # a broken file is better replaced
    if old is None or (old.num_tokens, old.num_loops) != (new.num_tokens, new.num_loops):
        return new
    kept = {(one.policy, one.exit): one for one in (*old.policies, *new.policies)}
    return new.model_copy(update={"policies": list(kept.values())})
