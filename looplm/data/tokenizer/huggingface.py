"""Tokenizers of the `tokenizers` library (extra `hf`): a tokenizer.json, with tokenizer_config.json beside it.

The config says which tokens begin and end a document and holds the chat template; both files are kept together.
"""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from looplm.data.tokenizer.base import Tokenizer
from looplm.data.tokenizer.chat_templates import named_templates, templates_beside
from looplm.errors import UserError

CONFIG_FILE = "tokenizer_config.json"
_KEPT = ("bos_token", "eos_token", "chat_template")
_TOKENS_FILE = "special_tokens_map.json"
# Some decoders strip the space before the first token, so a token is shown after another one.
_ANCHOR = "a"


class HuggingFaceTokenizer(Tokenizer):
    """A tokenizer.json. Without a bos of its own, eos stands at both ends of a document, as for GPT-2."""

    file_name = "tokenizer.json"
    needs_eos = True
    """Whether it has to be known which token ends a document."""

    def __init__(self, files: dict[str, bytes], path: Path) -> None:
        """Parse the two files; `path` is only kept for messages. Raises UserError if they are broken."""
        try:
            import tokenizers
        except ImportError:
            raise UserError(f"{path} needs the `tokenizers` library; run `pip install looplm[hf]`") from None
        self.files, self.path = files, path
        text = files[self.file_name].decode("utf-8", "replace")
        try:
            self._plain = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises nothing more particular
            raise UserError(f"{path} is not a tokenizer.json of the `tokenizers` library: {error}") from None
        self._plain.no_truncation()
        self._plain.no_padding()
        self._plain.encode_special_tokens = True
        self.vocab_size = max(self._plain.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self.config: dict[str, Any] = _parse(files[CONFIG_FILE], path.with_name(CONFIG_FILE))
        self.eos_id = self._special("eos_token")
        self.bos_id = self._special("bos_token")
        if self.bos_id < 0:
            self.bos_id = self.eos_id

    @classmethod
    def read(cls, data: bytes, path: Path, *, bos: str | None = None, eos: str | None = None) -> "HuggingFaceTokenizer":
        """Read what is beside tokenizer.json too. Raises UserError when it does not say what it has to."""
        config: dict[str, Any] = {}
        for beside in (path.with_name(name) for name in (_TOKENS_FILE, CONFIG_FILE)):
            if beside.is_file():
                config |= {key: value for key, value in _parse(beside.read_bytes(), beside).items() if value}
        if templates := templates_beside(path.parent, config.get("chat_template")):
            config["chat_template"] = templates
        config |= {key: name for key, name in (("bos_token", bos), ("eos_token", eos)) if name is not None}
        kept = {key: value for key, value in config.items() if key in _KEPT or _is_token(key, value)}
        if cls.needs_eos and "eos_token" not in kept:
            raise UserError(f"{path} does not say which token ends a document; give --eos NAME, e.g. '<|endoftext|>'")
        return cls({cls.file_name: data, CONFIG_FILE: (json.dumps(kept, indent=2) + "\n").encode()}, path)

    def encode(self, text: str) -> np.ndarray:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [_ids(encoding) for encoding in self._call(self._plain, texts)]

    def encode_template(self, text: str) -> np.ndarray:
        return self._ids_of(self._template, text)

    def _ids_of(self, tokenizer: Any, text: str, *, add_special_tokens: bool = False) -> np.ndarray:
        return _ids(self._call(tokenizer, [text], add_special_tokens=add_special_tokens)[0])

    @cached_property
    def _template(self) -> Any:
        # Another one: whether names of special tokens mean them is part of the state of the object.
        other = type(self._plain).from_str(self._plain.to_str())
        other.encode_special_tokens = False
        return other

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return self._plain.decode(self._checked(ids), skip_special_tokens=True)

    def pieces(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        anchor = self.encode(_ANCHOR).tolist()
        length = len(self._plain.decode(anchor))
        return [self._plain.decode([*anchor, i], skip_special_tokens=False)[length:] for i in self._checked(ids)]

    def token_id(self, name: str) -> int | None:
        return self._plain.token_to_id(name)

    @property
    def template_tokens(self) -> dict[str, str]:
        return {key: _content(value) for key, value in self.config.items() if _is_token(key, value)}

    @property
    def special_names(self) -> tuple[str, ...]:
        return tuple(token.content for token in self._plain.get_added_tokens_decoder().values() if token.special)

    @cached_property
    def mark_ids(self) -> frozenset[int]:
        tokens = self._plain.get_added_tokens_decoder().items()
        return frozenset(i for i, token in tokens if not token.content.isspace())

    @property
    def chat_templates(self) -> dict[str, str]:
        return named_templates(self.config.get("chat_template"))

    @cached_property
    def fingerprint(self) -> str:
        """Of everything the library reads, and of bos and eos."""
        rules = json.loads(self._plain.to_str())
        return hashlib.sha256(json.dumps([rules, self.bos_id, self.eos_id], sort_keys=True).encode()).hexdigest()

    def _call(self, tokenizer: Any, texts: Sequence[str], *, add_special_tokens: bool = False) -> list[Any]:
        try:
            return tokenizer.encode_batch_fast(texts, add_special_tokens=add_special_tokens)
        except (TypeError, UnicodeEncodeError):
            raise UserError("the text holds half of a surrogate pair, which UTF-8 lacks; read it as UTF-8") from None

    def _special(self, key: str) -> int:
        name = _content(self.config.get(key))
        if not name:
            return -1
        if not isinstance(name, str) or (found := self._plain.token_to_id(name)) is None:
            raise UserError(f"{self.path} has no token {name!r}, which is to be {key}; name one of its tokens")
        return found


def _is_token(key: str, value: Any) -> bool:
    """Whether an entry of the config names a special token, as templates call it: bos_token, pad_token, image_token."""
    return key.endswith("_token") and isinstance(_content(value), str)


def _content(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token  # both are in use


def _ids(encoding: Any) -> np.ndarray:
    return np.asarray(encoding.ids, np.int32)


def _parse(data: bytes, path: Path) -> dict[str, Any]:
    try:
        config = json.loads(data)
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}; mend it or take it away") from None
    return config if isinstance(config, dict) else {}
