"""Runs as GGUF files in llama.cpp beside looplm: bytes, loss on held-out tokens, equal greedy tokens, tokens a second,
memory. One line per run and type; in turn, on the same machine.

    python -m tools.bench_llama_cpp RUN [RUN ...] --peer PYTHON        (tools/llama_cpp_run.py says how PYTHON is made)

The loss is that of llama.cpp's logits on tokens of the run's held-out data, in float64; `looplm` is the same of ours.
"""

import json
import subprocess
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import jax
import numpy as np
import typer
from rich.console import Console

import looplm
from looplm.config.load import from_json
from looplm.convert.gguf_file import write_gguf
from looplm.data.dataset import TokenDataset

SCRIPT = Path(__file__).with_name("llama_cpp_run.py")
KINDS = ("f32", "f16", "q8_0", "q5_0", "q4_0")


def main(
    runs: Annotated[list[Path], typer.Argument(help="Run directories.")],
    peer: Annotated[Path, typer.Option(help="A Python with llama-cpp-python.")],
    kinds: Annotated[str, typer.Option(help="Types, by commas.")] = ",".join(KINDS),
    rows: int = 16,
    length: int = 128,
    written: int = 64,
    rounds: int = 5,
) -> None:
    """Print the table."""
    for run in runs:
        lm = looplm.load(run)
        config = from_json(run / "config.json")
        data = config.data.validation or config.data.train
        tokens_BS = TokenDataset.open(str(data)).tokens(0, rows * length).reshape(rows, length).astype(int)
        logits_BSV = np.asarray(jax.jit(lambda ids, lm=lm: lm(ids).logits(lm.loop.num_loops))(tokens_BS))
        prompt, speeds = tokens_BS[0, :8].tolist(), []
        for _ in range(rounds + 1):
            start = time.perf_counter()
            ours = lm.generate([prompt], max_tokens=written)[0].tokens
            speeds.append(len(ours) / (time.perf_counter() - start))
        told = f"looplm float32: loss {loss(logits_BSV, tokens_BS):.4f}, {np.median(speeds[1:]):.0f} tokens/s"
        print(f"{run.name}, {lm.functional.num_params:,} parameters, {told}")
        for kind in kinds.split(","):
            with TemporaryDirectory() as folder:
                file = Path(folder) / f"{kind}.gguf"
                write_gguf(run, file, Console(quiet=True), kind=kind)
                keys = 0 if kind == "f32" else 1
                scored = in_llama_cpp(peer, file, ids=tokens_BS.tolist(), keys=keys)
                made = in_llama_cpp(peer, file, ids=[prompt], greedy=written, rounds=rounds, logits=False)
                small = in_llama_cpp(peer, file, ids=[prompt], greedy=1, logits=False, in_place=True, batch=32)
                same = np.mean(made["greedy_N"][: len(ours)] == np.asarray(ours))
                away = np.abs(scored["logits_BSV"] - logits_BSV).max()
                print(
                    f"  {kind}: {file.stat().st_size / 1e6:.2f} MB, loss {loss(scored['logits_BSV'], tokens_BS):.4f}, "
                    f"logits within {away:.2g}, {same:.0%} of {len(ours)} greedy tokens, "
                    f"{np.median(made['tokens_per_second']):.0f} tokens/s, resident {grown(made):.1f} MB more, "
                    f"in place {grown(small):.1f} MB"
                )


def in_llama_cpp(peer: Path, file: Path, **asked: Any) -> dict[str, np.ndarray]:
    """Return what tools/llama_cpp_run.py measures in a process of its own."""
    question, out = file.with_suffix(".json"), file.with_suffix(".npz")
    question.write_text(json.dumps(asked))
    subprocess.run([peer, SCRIPT, file, question, out], check=True, stderr=subprocess.DEVNULL)
    return dict(np.load(out))


def loss(logits_BSV: np.ndarray, tokens_BS: np.ndarray) -> float:
    wide = logits_BSV[:, :-1].astype(np.float64)
    normalised = wide - np.logaddexp.reduce(wide, axis=-1, keepdims=True)
    return -float(np.take_along_axis(normalised, tokens_BS[:, 1:, None], -1).mean())


def grown(made: dict[str, np.ndarray]) -> float:
    return float(made["resident"] - made["resident_before"]) / 1e6


if __name__ == "__main__":
    typer.run(main)
