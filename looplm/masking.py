"""Nothing secret is shown or written: what looks like a password, a token or a key is replaced before it leaves.

Found by name (`api_token=...`, variables of the environment such as HF_TOKEN, whose values are then found anywhere) and
by shape (URLs with user info or a signature, keys of well-known services). Deliberately absent: anything that reads
weights, metrics or text.
"""

import os
import re
from collections.abc import Iterator
from typing import IO, Any, TextIO

MASK = "***"
WORDS = r"(?:token|secret|password|passwd|passphrase|credentials?|signature|api_?key|access_?key|private_?key|auth)"
VARIABLE = re.compile(rf"(?:^|_){WORDS}(?:_|$)|_key$|_pat$", re.IGNORECASE)
"""Names whose values are secret: whole words between `_`, so not TOKENIZERS_PARALLELISM."""
LEAST_LENGTH = 8
"""Of such a value: `false` or `1` would be found everywhere."""
NAMED = re.compile(
    rf"((?<![a-z])(?<!per_){WORDS}[\"']?\s*(?:=\s*|:\s*(?=[\"'])))(\"[^\"]*\"|'[^']*'|[^\s\"'&,;\\]+)", re.IGNORECASE
)
"""`name=value`, and `"name": "value"`; a plural as in batch_tokens is none, nor is experts_per_token."""
SHAPES = re.compile(
    r"(?:(?<=://)|(?<=\w:/))[^/\s@\"'\\]+(?=@)"  # user info of a URL, which a path writes with one slash
    r"|\bhf_[A-Za-z0-9]{16,}|\bgh[oprsu]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}|\bglpat-[\w-]{16,}|\bsk-[\w-]{16,}"
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bAIza[\w-]{30,}|\bya29\.[\w-]{10,}|\bxox[abeoprs]-[\w-]{10,}"
    r"|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]+"  # a JSON web token
)


def mask(text: str) -> str:
    """The text with `***` in place of every secret that was recognised."""
    for value in sorted(_values(), key=len, reverse=True):
        text = text.replace(value, MASK)
    return SHAPES.sub(MASK, NAMED.sub(rf"\g<1>{MASK}", text))


def mask_tree(value: Any) -> Any:
    """Nested dictionaries and lists with every string masked, and every string whose key names a secret."""
    if isinstance(value, dict):
        return {
            key: MASK if isinstance(child, str) and VARIABLE.search(str(key)) else mask_tree(child)
            for key, child in value.items()
        }
    if isinstance(value, list | tuple):
        return type(value)(mask_tree(child) for child in value)
    return mask(value) if isinstance(value, str) else value


def _values() -> Iterator[str]:
    for name, value in os.environ.items():
        if len(value) >= LEAST_LENGTH and VARIABLE.search(name):
            yield value


class _Masked:
    """A text stream that masks what is written to it."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(mask(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def masked(stream: TextIO) -> TextIO:
    """The stream, masking all that is written to it; tracebacks too, when it stands for standard error."""
    return _Masked(stream)  # type: ignore[return-value]


def unmasked(stream: IO[str]) -> IO[str]:
    """The stream below `masked`: for what a model or a dataset says, which is nobody's to alter."""
    return stream._stream if isinstance(stream, _Masked) else stream
