"""Prompts as ids: texts as documents begin in the training data, or ids as they are."""

from collections.abc import Sequence

import numpy as np

from looplm.data.tokenizer import Tokenizer
from looplm.errors import UserError


def prompt_ids(tokenizer: Tokenizer, prompt: str | Sequence[int] | np.ndarray) -> np.ndarray:
    """Return the ids of a prompt, (num_tokens,) int32.

    A text begins a document, and the names of special tokens in it mean these tokens: its author is who asks the
    model, unlike that of a text in the training data. Ids are taken as they are. Raises UserError for what is neither.
    """
    if isinstance(prompt, str):
        return np.concatenate(tokenizer.encode_document([prompt]))
    ids = np.asarray(prompt)
    if ids.ndim != 1 or not ids.size or not np.issubdtype(ids.dtype, np.integer):
        raise UserError(f"a prompt of shape {ids.shape} and type {ids.dtype} must be a text, or at least one token id")
    for value in (int(ids.min()), int(ids.max())):
        if not 0 <= value < tokenizer.vocab_size:
            raise UserError(f"a prompt holds {value}, which is none of the tokenizer's {tokenizer.vocab_size} ids")
    return ids.astype(np.int32)
