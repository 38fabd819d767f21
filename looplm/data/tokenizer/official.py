"""The tokenizer in an official model's folder, used as its authors' code uses it: prompts are as in transformers."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from looplm.config.schema import Run
from looplm.data.tokenizer.base import Tokenizer
from looplm.data.tokenizer.huggingface import HuggingFaceTokenizer


class OfficialTokenizer(HuggingFaceTokenizer):
    """What begins a prompt is what tokenizer.json puts there, and nothing has to end a text."""

    needs_eos = False

    def encode_prompt(self, text: str) -> np.ndarray:
        return self._ids_of(self._template, text, add_special_tokens=True)

    def encode_document(self, parts: Sequence[str]) -> list[np.ndarray]:
        """Return the ids of every part: a chat template writes itself what begins a chat."""
        return [self.encode_template(part) for part in parts]


def official_tokenizer(folder: Path) -> Tokenizer | None:
    """Return the tokenizer beside an official model; None if there is none. Raises UserError for a broken one."""
    path = folder / OfficialTokenizer.file_name
    # Older folders hold the same tokenizer in both forms.
    return OfficialTokenizer.read(path.read_bytes(), path) if path.is_file() else Tokenizer.find(folder)


def tokenizer_of(workdir: Path, run: Run) -> Tokenizer | None:
    """Return the tokenizer of a run directory; of one that has read nothing, as its authors' code uses it, since no
    dataset has said otherwise."""
    return Tokenizer.find(workdir) if run.data.sources else official_tokenizer(workdir)
