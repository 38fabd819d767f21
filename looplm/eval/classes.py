"""Where a model spends its loops: their mean by class of token, of a halting rule or of an exit gate.

Classes are of the label, which is what the loops have to find: how hard it was (its loss at the full depth), what kind
of piece of text it is, and how many tokens of its document stood in the window before it, which for a task is how long
the question is.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from looplm.config.schema import Model, NeverHalting
from looplm.data.tokenizer import Tokenizer
from looplm.data.window import IGNORED
from looplm.errors import UserError
from looplm.eval.bootstrap import interval, resampled_means
from looplm.eval.memory import alone, bin_of
from looplm.eval.score import Scorer, TokenScores
from looplm.eval.subject import Subject
from looplm.eval.tally import add_by_document
from looplm.metrics.classes import Classing, LoopsByClass, TokenClass
from looplm.model.gates import log_exit_distribution

LOSSES = (0.01, 0.1, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Nats between the classes of losses."""
PIECES = ("begin a word", "go on in a word", "digits", "space", "signs", "other")


@dataclass(frozen=True)
class Telling:
    """A way to tell tokens apart: a batch, and the losses of its tokens (B, S), -> the number of each one's class."""

    name: str
    classes: tuple[str, ...]
    tell: Callable[[dict[str, np.ndarray], np.ndarray], np.ndarray]


def check_classes(model: Model) -> None:
    """Raise UserError for a model in which all tokens go through all loops."""
    if isinstance(model.halting, NeverHalting) and model.exit_gate is None:
        raise UserError(
            "--classes tells which tokens take more loops, and in this model none leaves earlier than another: it has "
            "neither model.halting nor model.exit_gate; leave it out"
        )


def measure_classes(subject: Subject, tokenizer: Tokenizer | None) -> LoopsByClass:
    """Score the held-out data at the full depth. tokenizer: of their text, if they are text and it is known."""
    model, held_out, R = subject.run.model, subject.held_out, subject.run.loop.num_loops
    score = Scorer(subject.lm, subject.mesh, R)
    tellings = [_by_loss(), _by_length(subject.run.data.sequence_length)]
    if tokenizer is not None and held_out.dataset is not None:
        tellings.append(_by_piece(tokenizer))
    sums = [np.zeros((held_out.num_documents, len(telling.classes), 3)) for telling in tellings]
    kept = None
    for batch in held_out.batches(
        batch_size=subject.batch_size, max_batches=subject.max_batches, in_streams=score.remembers
    ):
        scores = score(subject.params, batch, kept)
        kept, scored_BS, nll_BS = scores.kept, batch["labels"] != IGNORED, scores.nll_RBS[-1]
        loops_M, nll_M, documents_M = _loops(scores)[scored_BS], nll_BS[scored_BS], batch["documents"][scored_BS]
        measured_M3 = np.stack([np.ones_like(nll_M), loops_M, nll_M], axis=1)
        for telling, sums_GC3 in zip(tellings, sums, strict=True):
            is_MC = telling.tell(batch, nll_BS)[scored_BS][:, None] == np.arange(len(telling.classes))
            add_by_document(sums_GC3, documents_M, is_MC[..., None] * measured_M3[:, None])
    tokens, loops, _ = sums[0].sum(axis=(0, 1))
    return LoopsByClass(
        step=subject.step,
        ema=subject.ema,
        data=held_out.name,
        num_tokens=int(tokens),
        num_documents=int((sums[0][..., 0].sum(axis=1) > 0).sum()),
        num_loops=R,
        of="exit gate" if isinstance(model.halting, NeverHalting) else "halting rule",
        mean_loops=float(loops / tokens),
        classings=[_classing(telling, sums_GC3) for telling, sums_GC3 in zip(tellings, sums, strict=True)],
    )


def _loops(scores: TokenScores) -> np.ndarray:
    """Return the loops of every token, (B, S)."""
    if scores.loops_BS is not None:
        return scores.loops_BS
    assert scores.gate_logits_RBS is not None, "see check_classes"
    exit_RBS = np.exp(log_exit_distribution(jnp.asarray(scores.gate_logits_RBS)))
    return np.tensordot(np.arange(1, len(exit_RBS) + 1), exit_RBS, axes=1)


def _classing(telling: Telling, sums_GC3: np.ndarray) -> Classing:
    """Return the classes that have tokens."""
    classes = []
    for name, sums_G3 in zip(telling.classes, sums_GC3.swapaxes(0, 1), strict=True):
        tokens, loops, nll = sums_G3.sum(axis=0)
        if tokens:
            low, high = interval(resampled_means(sums_G3[:, 1:2], sums_G3[:, 0])[:, 0])
            classes.append(
                TokenClass(
                    name=name,
                    tokens=int(tokens),
                    loops=float(loops / tokens),
                    loops_low=float(low),
                    loops_high=float(high),
                    loss=float(nll / tokens),
                )
            )
    return Classing(name=telling.name, classes=classes)


def _by_loss() -> Telling:
    names = [f"below {LOSSES[0]:g}", *(f"from {least:g}" for least in LOSSES)]
    return Telling("loss of the label", tuple(names), lambda batch, nll_BS: np.digitize(nll_BS, LOSSES))


def _by_length(window: int) -> Telling:
    bins = int(bin_of(np.array([window])).item()) + 1
    names = ["0", *(str(least) if least == 1 else f"{least} to {2 * least - 1}" for least in 2 ** np.arange(bins - 1))]
    return Telling("tokens before the label", tuple(names), lambda batch, _: bin_of(alone(batch)["positions"] + 1))


def _by_piece(tokenizer: Tokenizer) -> Telling:
    kinds_V = np.array([PIECES.index(_kind(piece)) for piece in tokenizer.pieces(np.arange(tokenizer.vocab_size))])
    return Telling("pieces that", PIECES, lambda batch, _: kinds_V[np.maximum(batch["labels"], 0)])


def _kind(piece: str) -> str:
    text = piece.strip()
    if not text:
        return "space" if piece else "other"
    if text.isdigit():
        return "digits"
    if text[0].isalpha():
        return "begin a word" if piece[0].isspace() else "go on in a word"
    return "other" if "\ufffd" in text else "signs"
