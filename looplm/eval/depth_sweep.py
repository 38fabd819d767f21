"""Held-out loss, bits per byte and accuracy at every depth, with bootstrap intervals over documents.

One pass over the data scores all depths. The record it gives (`metrics.sweep`) is what the report reads.
"""

import lzma
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from looplm.data.held_out import HeldOut
from looplm.data.window import check_ids
from looplm.eval.bootstrap import interval, resampled_means
from looplm.eval.calibration import calibrated
from looplm.eval.exit_tokens import ExitTokens
from looplm.eval.sample import take_sample
from looplm.eval.score import Scorer
from looplm.eval.solve import solve_curve
from looplm.eval.tally import EXIT_THRESHOLD, Tally
from looplm.metrics.sweep import Calibrated, Gain, Sample, Sweep
from looplm.model.functional import Params

XZ_LIMIT_BYTES = 64 * 2**20


class CutOff(Exception):
    """A sweep was not done to its end."""


def depth_sweep(
    score: Scorer,
    params: Params,
    held_out: HeldOut,
    *,
    batch_size: int,
    depths: Sequence[int],
    trained_depth: int,
    step: int,
    ema: bool = False,
    max_batches: int | None = None,
    with_xz: bool = False,
    exits: ExitTokens | None = None,
    stops: Callable[[], bool] = lambda: False,
) -> Sweep:
    """Scores `held_out` at the given depths.

    Args:
        score: of at least max(depths) loops.
        params: as created by training, sharded over the scorer's mesh.
        batch_size: sequences in one forward pass over all hosts.
        depths: which depths are reported, ascending.
        trained_depth: R of the run; exits and the gain refer to it.
        ema: whether `params` are averaged weights; goes into the record.
        max_batches: read only so many batches, spread over the data (of a model with a memory: the first ones of rows
            that are spread over it).
        with_xz: compress the text for comparison (seconds per 10 MB).
        exits: gathers what exit rules ask, of a scorer of signals.
        stops: asked before every batch whether to give up; the same answer in all processes.

    Raises UserError when the data do not fit the model, or nothing of them can be scored, CutOff when it was given up.
    """
    config = score.lm.config
    held_out.check_vocab(config.vocab_size)
    check_ids(held_out.name, held_out.windows, config.num_ids)
    held_out.check_labels(batch_size=batch_size, max_batches=max_batches)
    has_exits = config.exit_gate and score.one_pass and trained_depth <= score.num_loops
    tally = Tally(held_out.num_documents, score.num_loops, trained_depth if has_exits else None, score.tempered)
    sample: Sample | None = None
    kept = None
    for batch in held_out.batches(batch_size=batch_size, max_batches=max_batches, in_streams=score.remembers):
        if stops():
            raise CutOff
        scores = score(params, batch, kept)
        kept = scores.kept
        tally.add(batch, scores)
        sample = sample or take_sample(held_out, batch, scores, depths, tally.exits(scores))
        if exits is not None:
            exits.add(batch, scores)
    exit_depth, tokens = tally.exit_depth, tally.tokens_G.sum()
    scored_G = tally.tokens_G > 0
    tokens_G = tally.tokens_G[scored_G]
    summarise = partial(
        _summary, tokens_G=tokens_G, depths=depths, trained_depth=min(trained_depth, score.num_loops),
        tokens_per_byte=held_out.tokens_per_byte,
    )  # fmt: skip
    found = calibrated(tally.tempered_GRK[scored_G], tokens_G) if tally.tempered_GRK is not None else None
    return Sweep(
        step=step,
        ema=ema,
        data=held_out.name,
        num_tokens=int(tokens),
        num_bytes=held_out.num_bytes,
        num_documents=int(scored_G.sum()),
        depths=list(depths),
        trained_depth=trained_depth,
        **summarise(tally.nll_GR[scored_G]),
        accuracy=[float(tally.correct_GR[:, depth - 1].sum() / tokens) for depth in depths],
        calibrated=None
        if found is None
        else Calibrated(temperature=[float(found[1][:, depth - 1].mean()) for depth in depths], **summarise(found[0])),
        solve=None if held_out.dataset else solve_curve(tally.correct_GR[scored_G], tokens_G),
        exit_threshold=EXIT_THRESHOLD if exit_depth else None,
        exit_histogram=(tally.exit_counts_R / tokens).tolist() if exit_depth else None,
        expected_depth=float(tally.exit_counts_R @ np.arange(1, exit_depth + 1) / tokens) if exit_depth else None,
        exit_loss=tally.exit_nll / float(tokens) if exit_depth else None,
        xz_bits_per_byte=xz_bits_per_byte(held_out) if with_xz else None,
        sample=sample,
        loops=tally.loop_means(),
    )


def _summary(
    nll_GR: np.ndarray,
    *,
    tokens_G: np.ndarray,
    depths: Sequence[int],
    trained_depth: int,
    tokens_per_byte: float | None,
) -> dict[str, Any]:
    """What a sweep and its calibrated part say of losses, of their sums by document."""
    loss_R = nll_GR.sum(axis=0) / tokens_G.sum()
    samples = resampled_means(nll_GR, tokens_G)
    columns, first, last = np.array(depths) - 1, min(depths) - 1, trained_depth - 1
    low_R, high_R = interval(samples)
    change_low, change_high = interval(samples[:, columns] - samples[:, [last]])
    gain_low, gain_high = interval(samples[:, first] - samples[:, last])
    # Of all tokens and bytes: exact also when only a part was scored.
    bits = [None if tokens_per_byte is None else float(loss_R[c] / math.log(2) * tokens_per_byte) for c in columns]
    return {
        "loss": loss_R[columns].tolist(),
        "loss_low": low_R[columns].tolist(),
        "loss_high": high_R[columns].tolist(),
        "bits_per_byte": bits,
        "change_low": change_low.tolist(),
        "change_high": change_high.tolist(),
        "gain": Gain(
            from_depth=first + 1,
            to_depth=trained_depth,
            nats=float(loss_R[first] - loss_R[last]),
            low=float(gain_low),
            high=float(gain_high),
        ),
    }


def xz_bits_per_byte(held_out: HeldOut) -> float | None:
    """What `xz -9` makes of the text, in bits per byte; None above 64 MiB, where it takes minutes, and without text."""
    dataset = held_out.dataset
    if held_out.tokens_per_byte is None or dataset is None or not dataset.has_tokenizer:
        return None
    if dataset.num_bytes > XZ_LIMIT_BYTES:
        return None
    text = dataset.tokenizer().decode(dataset.tokens(0, dataset.num_tokens)).encode()
    return 8 * len(lzma.compress(text, preset=9)) / len(text)
