"""Held-out texts one by one, each with a prompt and what follows it."""

from collections import Counter
from typing import NamedTuple

import numpy as np

from looplm.data.loader import eval_batches
from looplm.data.window import IGNORED
from looplm.errors import UserError
from looplm.eval.subject import Subject

SHORTEST = 8
MOST_BATCHES = 64
Text = tuple[np.ndarray, np.ndarray, int, int]
"""Tokens, labels, tokens of the prompt, document."""


class Texts(NamedTuple):
    """N texts of T places."""

    tokens_NT: np.ndarray
    labels_NT: np.ndarray
    """What every token should predict; -100: nothing is scored."""
    length_N: np.ndarray
    prompt_N: np.ndarray
    """Tokens of the prompt: half of a text; of a task all before the answer."""
    document_N: np.ndarray

    @property
    def scored_NS(self) -> np.ndarray:
        """Which of the places behind the prompt are scored."""
        places_NS = self.prompt_N[:, None] + np.arange(int((self.length_N - self.prompt_N).max()))
        inside_NS = places_NS < self.length_N[:, None]
        labels_NS = np.take_along_axis(self.labels_NT, np.minimum(places_NS, self.labels_NT.shape[1] - 1), axis=1)
        return inside_NS & (labels_NS != IGNORED)


def texts_of(subject: Subject, *, rows: int, length: int) -> Texts:
    """Cut texts of at most `length` tokens out of windows that are spread over the held-out data: of every document its
    longest, then of every document the next, and so on.

    Raises UserError where none has a token to score behind its prompt.
    """
    length = min(length, subject.run.data.sequence_length)
    found: list[Text] = []
    batches = min(MOST_BATCHES, subject.num_batches)
    for batch in eval_batches(subject.held_out.windows, batch_size=subject.batch_size, max_batches=batches):
        for tokens_S, labels_S, segments_S, documents_S in zip(
            *(batch[name] for name in ("tokens", "labels", "segments", "documents")), strict=True
        ):
            starts = np.flatnonzero(np.diff(segments_S, prepend=-1))
            for start, stop in zip(starts, [*starts[1:], len(segments_S)], strict=True):
                piece = slice(start, min(stop, start + length))
                asked = np.flatnonzero(labels_S[piece] != IGNORED)
                size = piece.stop - piece.start
                if not segments_S[start] or size < SHORTEST or not len(asked):
                    continue
                prompt = int(asked[0]) if asked[0] else size // 2
                if (asked >= prompt).any():
                    found.append((tokens_S[piece], labels_S[piece], prompt, int(documents_S[start])))
    if not found:
        raise UserError(
            f"held-out data {subject.held_out.name} has no text of {SHORTEST} tokens with one to score in its second "
            "half, so KV policies cannot be measured; give longer texts with --data"
        )
    chosen = _spread(found)[:rows]
    tokens_NT = np.zeros((len(chosen), length), np.int32)
    labels_NT = np.full((len(chosen), length), IGNORED, np.int32)
    for row, (tokens, labels, _, _) in enumerate(chosen):
        tokens_NT[row, : len(tokens)], labels_NT[row, : len(labels)] = tokens, labels
    lengths, prompts, documents = zip(*((len(t), p, d) for t, _, p, d in chosen), strict=True)
    return Texts(tokens_NT, labels_NT, np.array(lengths), np.array(prompts), np.array(documents))


def _spread(found: list[Text]) -> list[Text]:
    """Order texts by how many of their document come before, and long ones first."""
    longest, seen, ranked = sorted(found, key=lambda text: -len(text[0])), Counter[int](), []
    for text in longest:
        ranked.append((seen[text[3]], text))
        seen[text[3]] += 1
    return [text for _, text in sorted(ranked, key=lambda one: one[0])]
