"""Tokens per second of plain decoding at full depth: looplm against the authors' code, one process, in turn.

    python -m tools.bench_decode_official ouro CHECKOUT       LoopedLMs/ouro_rl
    python -m tools.bench_decode_official huginn CHECKOUT     seal-rg/recurrent-pretraining

The authors' code draws the weights, looplm reads the folder that it saves. Float32, greedy, Huginn from zero states;
the tokens must be equal. The authors' model is called once a token with its own cache, which is quicker than their
`generate`. Needs torch and transformers 4.54. On a machine that does other work, CPU time with `--threads 1` says more:
threads of torch that wait for one another burn it.
"""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from tools.bench_train import official

Write = Callable[[np.ndarray], np.ndarray]
"""From prompts (B, P) to what follows them, (B, N)."""
WIDTH, LAYERS, LOOPS, INNER, VOCAB = 512, 4, 4, 1408, 8192


def authors_model(peer: str, checkout: Path) -> Any:
    """Build the official model with random weights."""
    import torch
    import transformers

    torch.manual_seed(0)
    if peer == "ouro":
        for name in ("key_cache", "value_cache"):  # read-only in this version, and Ouro's cache sets them
            if isinstance(vars(transformers.Cache).get(name), property):
                delattr(transformers.Cache, name)
        code = official(checkout / "ouro_rl" / "modeling", "modeling_ouro")
        config = code.OuroConfig(
            vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=LAYERS,
            num_attention_heads=WIDTH // 64, num_key_value_heads=WIDTH // 64, total_ut_steps=LOOPS,
        )  # fmt: skip
        return code.OuroForCausalLM(config).eval()
    # Huginn's caches set what is read-only in this version, and call its constructor without arguments.
    for name in ("Cache", "DynamicCache"):
        setattr(transformers.cache_utils, name, type(name, (), {}))
    code = official(checkout / "recpre", "raven_modeling_minimal")
    config = code.RavenConfig(
        n_embd=WIDTH, n_heads=WIDTH // 64, intermediate_size=INNER, vocab_size=VOCAB, padding_multiple=1,
        block_size=512, n_layers_in_recurrent_block=LAYERS, mean_recurrence=LOOPS, torch_dtype="float32",
    )  # fmt: skip
    return code.RavenForCausalLM(config).eval()


def authors_ways(peer: str, model: Any, num_tokens: int) -> dict[str, Write]:
    """Return the ways in which the official code writes: with every cache that it has."""
    import torch

    code = __import__("sys").modules[type(model).__module__]

    def cache_of(kind: str, batch: int, length: int) -> Any:
        if kind == "static":
            return code.HuginnStaticCache(
                length, 4 + 4 * LOOPS, model.config.n_heads, model.config.head_dim, batch_size=batch
            )
        return code.UniversalTransformerCache() if peer == "ouro" else code.HuginnDynamicCache()

    def way(kind: str) -> Write:
        options: dict[str, Any] = (
            dict(use_early_exit_gate=False)
            if peer == "ouro"
            else dict(num_steps=torch.tensor([LOOPS, 0]), init_scale=0.0)
        )

        @torch.no_grad()
        def write(prompts_BP: np.ndarray) -> np.ndarray:
            new, seen, written = torch.from_numpy(prompts_BP).long(), 0, []
            cache = cache_of(kind, len(prompts_BP), prompts_BP.shape[1] + num_tokens)
            for _ in range(num_tokens):
                at = torch.arange(seen, seen + new.shape[1])
                logits_BSV = model(new, past_key_values=cache, use_cache=True, cache_position=at, **options).logits
                seen, new = seen + new.shape[1], logits_BSV[:, -1:].argmax(-1)
                written.append(new)
            return torch.cat(written, dim=1).numpy()

        return write

    if peer == "ouro":
        return {"official": way("grows")}
    return {"official, dynamic cache": way("grows"), "official, static cache": way("static")}


def our_way(peer: str, model: Any, num_tokens: int) -> Write:
    """Return how looplm writes with the same weights."""
    import looplm
    from looplm.config.schema import ZeroState
    from looplm.infer.generate import generate
    from looplm.model.functional import FunctionalLM

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        lm = looplm.load(folder)
    functional = lm.functional
    if peer == "huginn":
        functional = FunctionalLM(lm.model.model_copy(update={"state_init": ZeroState()}))

    def write(prompts_BP: np.ndarray) -> np.ndarray:
        rows = generate(functional, lm.params, list(prompts_BP), num_loops=LOOPS, max_tokens=num_tokens, num_ids=VOCAB)
        return np.stack([row.tokens for row in rows])

    return write


def compare(ways: dict[str, Write], prompts_BP: np.ndarray, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Return the seconds of every way, by the clock and of the CPU, taken in turn; all write the same tokens."""
    tokens = {name: write(prompts_BP) for name, write in ways.items()}  # compiles
    ours, *others = tokens.values()
    for other in others:
        np.testing.assert_array_equal(other, ours, "greedy tokens")
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, write in ways.items():
            start, busy = time.perf_counter(), time.process_time()
            write(prompts_BP)
            seconds[name].append((time.perf_counter() - start, time.process_time() - busy))
    return seconds


def bandwidth(num_bytes: int, rounds: int = 20) -> float:
    """Return how many bytes a second all threads read of memory that is read over and over, as weights are."""
    import torch

    x = torch.ones(num_bytes // 4)
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        x.sum()
        times.append(time.perf_counter() - start)
    return num_bytes / min(times)


def main(
    peer: Annotated[Literal["ouro", "huginn"], typer.Argument(help="Whose code.")],
    checkout: Annotated[Path, typer.Argument(help="Checkout of the official code.")],
    rows: Annotated[str, typer.Option(help="Batch sizes.")] = "1,8",
    threads: Annotated[int, typer.Option(help="CPUs that either may use.")] = 2,
    prompt: Annotated[int, typer.Option(help="Tokens of a prompt.")] = 32,
    tokens: Annotated[int, typer.Option(help="Tokens that are written.")] = 64,
    rounds: Annotated[int, typer.Option(help="Runs of each that count.")] = 5,
) -> None:
    """Print a table."""
    import torch

    os.sched_setaffinity(0, range(threads))  # before JAX starts its threads
    torch.set_num_threads(threads)
    model = authors_model(peer, checkout)
    ways = {"looplm": our_way(peer, model, tokens)} | authors_ways(peer, model, tokens)
    table = Table("rows", "", "tokens/s", "of looplm", "CPU ms a step", "of looplm")
    for batch in map(int, rows.split(",")):
        prompts_BP = np.random.default_rng(batch).integers(0, VOCAB, (batch, prompt), dtype=np.int32)
        taken = {name: np.array(values) for name, values in compare(ways, prompts_BP, rounds).items()}
        for name, times in taken.items():
            wall, busy = np.median(times, axis=0)
            slower, dearer = np.median(times / taken["looplm"], axis=0)
            cells = f"{batch * tokens / wall:.0f}", f"{1 / slower:.2f}", f"{1e3 * busy / tokens:.1f}", f"{dearer:.2f}"
            table.add_row(str(batch), name, *cells)
    Console(width=100).print(table)
    weights = sum(p.numel() for p in model.parameters()) * 4
    print(f"{peer}, {threads} threads, {rounds} rounds, {prompt} + {tokens} tokens; weights of {weights / 1e6:.0f} MB, "
          f"read at {bandwidth(weights) / 1e9:.1f} GB/s")  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
