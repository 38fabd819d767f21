"""What a memory over the sequence is worth: held-out text in order, with memories of several lengths.

Rows go on from batch to batch as in training. Losses are also by context length: how many tokens of its document had
been read before a token, of which a memory of M tokens shows those of the window and M more. The bins hold the same
tokens under every length.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from looplm.config.schema import Model, Run
from looplm.data.window import IGNORED
from looplm.errors import UserError
from looplm.eval.bootstrap import interval, resampled_means
from looplm.eval.score import Scorer
from looplm.eval.subject import Subject
from looplm.eval.tally import add_by_document
from looplm.metrics.memory_loss import MemoryLoss, MemoryLosses
from looplm.model.functional import FunctionalLM


class Sums(NamedTuple):
    """Losses and numbers of the scored tokens, by document (G) and by bin of context length (N)."""

    nll_G: np.ndarray
    tokens_G: np.ndarray
    nll_N: np.ndarray
    tokens_N: np.ndarray


def check_memory(run: Run, lengths: Iterable[int]) -> list[int]:
    """Return the lengths that are measured, ascending: those given, the run's own, and 0, which they are held against.

    Raises UserError for a negative length, and for a run whose model has no memory whose length may be another.
    """
    own = trained_length(run.model)
    if run.model.memory is not None and run.model.memory.compressed_length:
        raise UserError(
            "--memory compares lengths of a memory of tokens, and with model.memory=compressive what is compressed "
            "depends on the length; leave it out, and held-out text is scored with the memory of training"
        )
    for length in lengths:
        if length < 0:
            raise UserError(f"--memory={length} is a number of tokens that are remembered; use 0 or more")
        if length and not own:
            raise UserError(
                f"--memory={length} is of a model that was trained with a memory, and this one has "
                "model.memory=null; use 0, for losses by context length alone"
            )
    return sorted({0, own, *lengths})


def trained_length(model: Model) -> int:
    return 0 if model.memory is None else model.memory.length


def measure_memory(subject: Subject, lengths: Iterable[int]) -> MemoryLosses:
    """Score all held-out text under memories of these lengths, of which the first is 0, at the full depth."""
    found = {length: _score(subject, length) for length in lengths}
    none, R = found[0], subject.run.loop.num_loops
    scored_G, filled_N = none.tokens_G > 0, none.tokens_N > 0
    tokens_G, tokens_N = none.tokens_G[scored_G], none.tokens_N[filled_N]
    memories = []
    for length, sums in found.items():
        change_G = (sums.nll_G - none.nll_G)[scored_G]
        low, high = interval(resampled_means(change_G[:, None], tokens_G)[:, 0])
        memories.append(
            MemoryLoss(
                length=length,
                loss=float(sums.nll_G.sum() / tokens_G.sum()),
                change=float(change_G.sum() / tokens_G.sum()),
                change_low=float(low),
                change_high=float(high),
                loss_by_context=(sums.nll_N[filled_N] / tokens_N).tolist(),
            )
        )
    return MemoryLosses(
        step=subject.step,
        ema=subject.ema,
        data=subject.held_out.name,
        num_tokens=int(tokens_G.sum()),
        num_documents=int(scored_G.sum()),
        num_loops=R,
        window=subject.run.data.sequence_length,
        trained_length=trained_length(subject.run.model),
        context=[int(2**n // 2) for n in np.flatnonzero(filled_N)],
        context_tokens=[int(count) for count in tokens_N],
        memories=memories,
    )


def _score(subject: Subject, length: int) -> Sums:
    model, held_out, S = subject.run.model, subject.held_out, subject.run.data.sequence_length
    if model.memory is not None:
        model = model.model_copy(update={"memory": model.memory.model_copy(update={"length": length})})
    score = Scorer(FunctionalLM(model), subject.mesh, subject.run.loop.num_loops)
    G, bins = held_out.num_documents, 2 + int(np.log2(len(held_out.windows) * S))
    nll_G, tokens_G, nll_N, tokens_N = np.zeros(G), np.zeros(G), np.zeros(bins), np.zeros(bins)
    kept, before_B = None, np.zeros(subject.batch_size, np.int64)
    batches = held_out.batches(batch_size=subject.batch_size, max_batches=subject.max_batches, in_streams=True)
    for batch in batches:
        scores = score(subject.params, batch if score.remembers else alone(batch), kept)
        kept = scores.kept
        context_BS = tokens_before(batch, before_B)
        before_B = context_BS[:, -1] + 1
        scored_BS = batch["labels"] != IGNORED
        nll_M, document_M = scores.nll_RBS[-1][scored_BS], batch["documents"][scored_BS]
        bin_M = bin_of(context_BS[scored_BS])
        add_by_document(nll_G, document_M, nll_M)
        tokens_G += np.bincount(document_M, minlength=G)
        nll_N += np.bincount(bin_M, nll_M, minlength=bins)
        tokens_N += np.bincount(bin_M, minlength=bins)
    return Sums(nll_G, tokens_G, nll_N, tokens_N)


def alone(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return windows that go on in nothing, whose positions begin at 0."""
    positions_BS = batch["positions"]
    begun_BS = positions_BS[:, :1] * (batch["segments"] == 1)
    return batch | {"positions": positions_BS - begun_BS}


def tokens_before(batch: dict[str, np.ndarray], before_B: np.ndarray) -> np.ndarray:
    """Return how many tokens of its document a row has read before every token, (B, S).

    before_B: so many of the document that the row was in when it ended, in the batch before.
    """
    positions_BS, S = batch["positions"].astype(np.int64), batch["positions"].shape[1]
    goes_on_BS = (positions_BS[:, :1] > 0) & (batch["segments"] == 1)
    return positions_BS + goes_on_BS * (before_B[:, None] - S)


def bin_of(context_M: np.ndarray) -> np.ndarray:
    """Return the bin of every context length: 0 is of 0, n of 2**(n-1) to 2**n - 1."""
    return np.frexp(context_M.astype(np.float64))[1]
