"""Runs a GGUF file in llama.cpp: logits, greedy tokens and ids of texts, its speed and the memory of its process.

python tools/llama_cpp_run.py FILE.gguf ASKED.json OUT.npz       needs llama-cpp-python, 0.3.36 or newer, and its numpy

    pip install llama-cpp-python==0.3.36        (it is built from source: a compiler, cmake, some minutes)

ASKED.json may have `ids` (a list of lists, for logits at every place), `greedy` (how many tokens are written after the
first list), `texts` (to be cut into ids), `threads`, `rounds` (how often `greedy` is timed), `keys` (what keys and
values are kept in: 0 float32, 1 float16, as ggml numbers its types), `batch` (tokens at a time), and `in_place`
(weights are used as the file has them, without a second copy that suits the processor: less memory, slower). The arrays
of OUT.npz are `logits_BSV` (float32), `greedy_N`, `text_0`, `text_1`, ..., `tokens_per_second` of every round, and
`resident` and `resident_before` in bytes: of this process after the work, and before the file was opened.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def main(file: str, asked_file: str, out: str) -> None:
    import llama_cpp.llama_cpp as library
    from llama_cpp import Llama

    asked = json.loads(Path(asked_file).read_text())
    ids, threads = asked.get("ids", []), asked.get("threads", 2)
    length = max(map(len, ids), default=1) + asked.get("greedy", 0) + 1
    made: dict[str, Any] = {"resident_before": resident()}
    keys = asked.get("keys", 1)
    common: dict[str, Any] = {
        "type_k": keys,
        "type_v": keys,
        "n_ctx": length,
        "n_batch": asked.get("batch", 512),
        "n_ubatch": asked.get("batch", 512),
        "n_threads": threads,
        "n_threads_batch": threads,
        "verbose": False,
    }
    if asked.get("in_place"):
        library.llama_model_default_params = without_copies(library.llama_model_default_params)
    model = Llama(file, **common)
    for number, text in enumerate(asked.get("texts", [])):
        made[f"text_{number}"] = np.array(model.tokenize(text.encode(), add_bos=False, special=False))
    speeds, written = [], []
    for _ in range(asked.get("rounds", 1) if asked.get("greedy") else 0):
        model.reset()
        start = time.perf_counter()
        written = greedy(model, ids[0], asked["greedy"])
        speeds.append(asked["greedy"] / (time.perf_counter() - start))
    made |= {"greedy_N": np.array(written), "tokens_per_second": np.array(speeds), "resident": resident()}
    if ids and asked.get("logits", True):
        del model
        model = Llama(file, logits_all=True, **common)
        made["logits_BSV"] = np.stack([logits(model, row) for row in ids])
    np.savez(out, **made)


def without_copies(defaults: Callable[[], Any]) -> Callable[[], Any]:
    """Return what gives the library's settings of a model, but for copies that suit the processor."""

    def changed() -> Any:
        settings = defaults()
        settings.use_extra_bufts = False
        return settings

    return changed


def logits(model: Any, ids: list[int]) -> np.ndarray:
    model.reset()
    model.eval(ids)
    return np.array(model.scores[: len(ids)], np.float32)


def greedy(model: Any, prompt: list[int], num_tokens: int) -> list[int]:
    sampled = model.generate(prompt, temp=0.0, top_k=1, repeat_penalty=1.0)
    return [next(sampled) for _ in range(num_tokens)]


def resident() -> int:
    """Bytes of memory that this process holds now, shared pages of the mapped file included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


if __name__ == "__main__":
    main(*sys.argv[1:])
