"""A file of prompts, and the file of their answers: a JSON object a line, every prompt once, after whatever stop."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from looplm.errors import UserError
from looplm.infer.continuation import Continuation


class Asked(NamedTuple):
    """A prompt of a file."""

    prompt: str | list[int] | None
    """A text, or ids; None where there are messages."""
    messages: list[dict[str, Any]] | None
    seed: int | None
    """Of what is drawn for it; None: that of the command."""


def read_prompts(path: Path) -> list[Asked]:
    """Read prompts: of a .jsonl file an object a line with `prompt` (a text, or ids) or `messages`, and maybe `seed`;
    of any other file a text a line.

    Raises UserError for a file that cannot be read, holds none, or a line that is no prompt.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}; give a file of prompts, one a line") from None
    is_json = path.suffix == ".jsonl"
    prompts = [
        _object(path, number, line) if is_json else Asked(line, None, None)
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not prompts:
        raise UserError(f"{path} holds no prompts; write one a line")
    return prompts


def seeds_of(prompts: Sequence[Asked], seed: int) -> list[int]:
    """Return a seed for every prompt of a file: its own, or `seed`. A prompt that is there again has another, whatever
    part of the file is answered together."""
    copies: Counter[str] = Counter()
    seeds = []
    for asked in prompts:
        own = seed if asked.seed is None else asked.seed
        text = json.dumps([own, asked.prompt, asked.messages], sort_keys=True, default=str)
        copy = copies[text]
        copies[text] += 1
        digest = hashlib.sha256(f"{own} {copy}".encode()).digest()
        seeds.append(int.from_bytes(digest[:4], "little") if copy else own)
    return seeds


def _object(path: Path, number: int, line: str) -> Asked:
    wanted = 'give {"prompt": TEXT} or {"messages": [...]}, and maybe "seed": N'
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{number} is no JSON: {error}; {wanted}") from None
    if not isinstance(value, Mapping) or ("prompt" in value) == ("messages" in value):
        raise UserError(f"{path}:{number} holds neither a prompt nor messages, or both; {wanted}")
    seed = value.get("seed")
    if seed is not None and not isinstance(seed, int):
        raise UserError(f"{path}:{number} has seed {seed!r}, which is no whole number; {wanted}")
    return Asked(value.get("prompt"), value.get("messages"), seed)


class Answers:
    """The file that answers are written to. Opened again, it goes on after those that it holds."""

    def __init__(self, path: Path, prompts: Sequence[Asked], settings: Mapping[str, Any]) -> None:
        """Open the file, or make it. settings: what else answers depend on.

        Raises UserError for a file of other prompts or settings, or one that holds something else.
        """
        self._path, self._prompts = path, prompts
        self._keys = [_key(prompt, number, settings) for number, prompt in enumerate(prompts)]
        path.parent.mkdir(parents=True, exist_ok=True)
        self.done = self._read() if path.exists() else set[int]()
        """Numbers of the prompts that are answered."""
        self._file = path.open("ab")

    def write(self, number: int, text: Continuation) -> None:
        """Add an answer; it is handed to the system at once."""
        asked = self._prompts[number]
        record = {
            "number": number,
            "key": self._keys[number],
            **({"prompt": asked.prompt} if asked.messages is None else {"messages": asked.messages}),
            "text": str(text),
            "tokens": text.tokens.tolist(),
            "loops": text.loops.tolist(),
        }
        self._file.write((json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass"))
        self._file.flush()
        self.done.add(number)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _read(self) -> set[int]:
        data = self._path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            # The last line was being written; nobody has read it yet.
            with self._path.open("r+b") as file:
                file.truncate(len(whole))
                os.fsync(file.fileno())
        done = set()
        for place, line in enumerate(whole.splitlines(), start=1):
            try:
                record = json.loads(line)
                number, key = record["number"], record["key"]
            except (ValueError, KeyError, TypeError):
                raise UserError(f"{self._path}:{place} is no answer of looplm; give another --out") from None
            if not (isinstance(number, int) and 0 <= number < len(self._keys)) or self._keys[number] != key:
                raise UserError(
                    f"{self._path}:{place} answers another prompt, or was written with other settings; "
                    "give another --out"
                )
            done.add(number)
        return done


def _key(asked: Asked, number: int, settings: Mapping[str, Any]) -> str:
    text = json.dumps([number, *asked, settings], sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
