"""The README.md of an exported model: what it is, how it was trained, how well it does at which depth."""

from collections.abc import Iterator
from pathlib import Path

from looplm.checkpoint.lineage import official_config
from looplm.checkpoint.seal import Seal
from looplm.config.schema import Run
from looplm.metrics.sweep import read_sweeps


def model_card(run: Run, seal: Seal, root: Path, kind: str, num_parameters: int, *, ema: bool = False) -> str:
    """Markdown, with the header that the Hub reads. ema: whether the weights are the moving average."""
    return "\n".join(_lines(run, seal, root, kind, num_parameters, ema)) + "\n"


def _lines(run: Run, seal: Seal, root: Path, kind: str, num_parameters: int, ema: bool) -> Iterator[str]:
    model, loops = run.model, run.loop.num_loops
    yield from ("---", "library_name: transformers", "pipeline_tag: text-generation", "tags:")
    yield from ("- looped-language-model", "- looplm", "---", "", f"# {root.resolve().name}", "")
    parts = [("prelude", model.prelude_layers), ("shared block", model.block_layers), ("coda", model.coda_layers)]
    layers = ", ".join(f"{name} of {count} layers" for name, count in parts if count)
    yield f"A language model of kind `{kind}`, exported by looplm: {layers}; the block runs {loops} times for a token."
    yield from ("", "| | |", "|---|---|", f"| parameters | {num_parameters:,} |", f"| width | {model.dim} |")
    yield f"| heads | {model.num_heads} of size {model.head_size}, {model.kv_heads} of keys and values |"
    yield f"| vocabulary | {model.vocab_size:,} |"
    yield f"| loops | {loops} |"
    yield from ("", "## Training", "")
    yield from _training(run, seal, root)
    if ema:
        yield f"- weights: their moving average, decay {run.optim.ema_decay:g} a step"
    else:  # scores beside a run are those of the weights themselves
        yield from _scores(seal, root)


def _training(run: Run, seal: Seal, root: Path) -> Iterator[str]:
    if (source := official_config(root)) and seal.step == 0:
        yield f"Imported from a folder of kind `{source.get('model_type')}`; not trained since."
        return
    if source or run.init_from is not None:
        yield "It started from the weights of another model.\n"
    data, optim = run.data, run.optim
    window, names = data.sequence_length, ", ".join(source.name for source in data.sources)
    yield f"- {seal.step:,} of {run.num_steps:,} steps of {data.batch_tokens:,} tokens in windows of {window}"
    yield f"- data: {names}"
    yield f"- objective: `{run.objective.kind}`; depth in training: `{run.loop.depth.kind}`"
    yield f"- optimizer: `{optim.optimizer.kind}`, peak learning rate {optim.learning_rate:g}, `{optim.schedule.decay}`"
    yield f"- seed {run.seed}"


def _scores(seal: Seal, root: Path) -> Iterator[str]:
    sweep = next((sweep for sweep in read_sweeps(root / "eval") if sweep.step == seal.step), None)
    if sweep is None:
        return
    yield from ("", "## Held-out loss by depth", "", "| loops | loss (nats per token) | accuracy |", "|---|---|---|")
    for row in sweep.rows:
        yield f"| {row.depth} | {row.loss:.4f} ({row.low:.4f} to {row.high:.4f}) | {row.accuracy:.3f} |"
