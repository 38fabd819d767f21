"""Held-out loss, bits per byte and accuracy at every depth, with bootstrap intervals over documents.

One pass over the data scores all depths. The record it gives (`metrics.sweep`) is what the report reads.
"""

import lzma
import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from looplm.data.held_out import HeldOut
from looplm.data.loader import eval_batches
from looplm.eval.bootstrap import interval, resampled_means
from looplm.eval.sample import take_sample
from looplm.eval.score import Scorer, TokenScores, exit_loops
from looplm.metrics.sweep import Gain, LoopMeans, Sample, Sweep
from looplm.model.functional import Params
from looplm.model.gates import log_exit_distribution

EXIT_THRESHOLD = 0.5
"""A token leaves when it has more likely left than not."""
XZ_LIMIT_BYTES = 64 * 2**20


class Tally:
    """Sums of token scores by document."""

    def __init__(self, num_documents: int, num_loops: int, exit_depth: int | None):
        self.nll_GR = np.zeros((num_documents, num_loops))
        self.correct_R = np.zeros(num_loops)
        self.tokens_G = np.zeros(num_documents)
        self.exit_depth = exit_depth
        self.exit_counts_R = np.zeros(exit_depth or 0)
        self.exit_nll = 0.0
        self.exit_probability_R = np.zeros(exit_depth or 0)
        self.loops_R: dict[str, np.ndarray] = {}

    def add(self, batch: dict[str, np.ndarray], scores: TokenScores) -> None:
        """Adds a batch of the evaluation loader and its scores."""
        scored_BS = batch["labels"] >= 0
        documents = batch["documents"][scored_BS]
        for loop, nll_BS in enumerate(scores.nll_RBS):
            self.nll_GR[:, loop] += np.bincount(documents, nll_BS[scored_BS], minlength=len(self.tokens_G))
        self.tokens_G += np.bincount(documents, minlength=len(self.tokens_G))
        self.correct_R += scores.correct_RBS.sum(axis=(1, 2))
        for name, sums_R in scores.loops_R.items():
            self.loops_R[name] = self.loops_R.get(name, 0.0) + sums_R.astype(np.float64)
        left_BS, gate_logits_RBS = self.exits(scores), scores.gate_logits_RBS
        if left_BS is None or gate_logits_RBS is None:
            return
        exit_nll_BS = np.take_along_axis(scores.nll_RBS, left_BS[None] - 1, axis=0)[0]
        self.exit_counts_R += np.bincount(left_BS[scored_BS], minlength=len(self.exit_counts_R) + 1)[1:]
        self.exit_nll += float(exit_nll_BS[scored_BS].sum())
        exit_RBS = np.exp(log_exit_distribution(jnp.asarray(gate_logits_RBS[: self.exit_depth])))
        self.exit_probability_R += exit_RBS[:, scored_BS].sum(axis=1)

    def exits(self, scores: TokenScores) -> np.ndarray | None:
        """Return the loop after which every token leaves at the usual threshold, (B, S); None without a gate."""
        if self.exit_depth is None or scores.gate_logits_RBS is None:
            return None
        return exit_loops(scores.gate_logits_RBS[: self.exit_depth], EXIT_THRESHOLD)

    def loop_means(self) -> LoopMeans | None:
        """Return what every loop does to the state; None where nothing was measured."""
        if not self.loops_R:
            return None
        tokens = self.tokens_G.sum()
        means = {name.removeprefix("loop/"): (sums_R / tokens).tolist() for name, sums_R in self.loops_R.items()}
        return LoopMeans(**means, exit_probability=(self.exit_probability_R / tokens).tolist() or None)


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
) -> Sweep:
    """Scores `held_out` at the given depths.

    Args:
        score: of at least max(depths) loops.
        params: as created by training, sharded over the scorer's mesh.
        batch_size: sequences in one forward pass over all hosts.
        depths: which depths are reported, ascending.
        trained_depth: R of the run; exits and the gain refer to it.
        ema: whether `params` are averaged weights; goes into the record.
        max_batches: read only so many batches, spread over the data.
        with_xz: compress the text for comparison (seconds per 10 MB).

    Raises UserError when the data do not fit the model, or nothing of them can be scored.
    """
    config = score.lm.config
    held_out.check_vocab(config.vocab_size)
    held_out.check_labels(batch_size=batch_size, max_batches=max_batches)
    exit_depth = trained_depth if config.exit_gate and trained_depth <= score.num_loops else None
    tally = Tally(held_out.num_documents, score.num_loops, exit_depth)
    sample: Sample | None = None
    for batch in eval_batches(held_out.windows, batch_size=batch_size, max_batches=max_batches):
        scores = score(params, batch)
        tally.add(batch, scores)
        sample = sample or take_sample(held_out, batch, scores, depths, tally.exits(scores))
    tokens = tally.tokens_G.sum()
    columns = np.array(depths) - 1
    loss_R = tally.nll_GR.sum(axis=0) / tokens
    scored_G = tally.tokens_G > 0
    samples = resampled_means(tally.nll_GR[scored_G], tally.tokens_G[scored_G])
    low_R, high_R = interval(samples)
    to_depth = min(trained_depth, score.num_loops)
    change_low, change_high = interval(samples[:, columns] - samples[:, [to_depth - 1]])
    gain_low, gain_high = interval(samples[:, min(depths) - 1] - samples[:, to_depth - 1])
    # Of all tokens and bytes: exact also when only a part was scored.
    tokens_per_byte, bits_R = held_out.tokens_per_byte, loss_R[columns] / math.log(2)
    return Sweep(
        step=step,
        ema=ema,
        data=held_out.name,
        num_tokens=int(tokens),
        num_bytes=held_out.num_bytes,
        num_documents=int(scored_G.sum()),
        depths=list(depths),
        trained_depth=trained_depth,
        loss=loss_R[columns].tolist(),
        loss_low=low_R[columns].tolist(),
        loss_high=high_R[columns].tolist(),
        bits_per_byte=[None] * len(depths) if tokens_per_byte is None else (bits_R * tokens_per_byte).tolist(),
        accuracy=(tally.correct_R[columns] / tokens).tolist(),
        change_low=change_low.tolist(),
        change_high=change_high.tolist(),
        gain=Gain(
            from_depth=min(depths),
            to_depth=to_depth,
            nats=float(loss_R[min(depths) - 1] - loss_R[to_depth - 1]),
            low=float(gain_low),
            high=float(gain_high),
        ),
        exit_threshold=EXIT_THRESHOLD if exit_depth else None,
        exit_histogram=(tally.exit_counts_R / tokens).tolist() if exit_depth else None,
        expected_depth=float(tally.exit_counts_R @ np.arange(1, exit_depth + 1) / tokens) if exit_depth else None,
        exit_loss=tally.exit_nll / float(tokens) if exit_depth else None,
        xz_bits_per_byte=xz_bits_per_byte(held_out) if with_xz else None,
        sample=sample,
        loops=tally.loop_means(),
    )


def xz_bits_per_byte(held_out: HeldOut) -> float | None:
    """What `xz -9` makes of the text, in bits per byte; None above 64 MiB, where it takes minutes, and without text."""
    dataset = held_out.dataset
    if held_out.tokens_per_byte is None or dataset is None or not dataset.has_tokenizer:
        return None
    if dataset.num_bytes > XZ_LIMIT_BYTES:
        return None
    text = dataset.tokenizer().decode(dataset.tokens(0, dataset.num_tokens)).encode()
    return 8 * len(lzma.compress(text, preset=9)) / len(text)
