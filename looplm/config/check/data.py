"""Batches, sources, tasks and what is held out."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from looplm.config.check.divisors import divisors
from looplm.config.check.rule import Rules
from looplm.config.schema import Chains, Graphs, Maze, Records, Run


def _batch(run: Run) -> Iterator[str]:
    data = run.data
    if data.batch_tokens % data.sequence_length:
        nearest = max(1, round(data.batch_tokens / data.sequence_length)) * data.sequence_length
        yield (
            f"data.batch_tokens={data.batch_tokens} is no multiple of data.sequence_length={data.sequence_length}; "
            f"use {nearest}"
        )
    elif (sequences := data.batch_tokens // data.sequence_length) % data.accumulation_steps:
        yield (
            f"data.accumulation_steps={data.accumulation_steps} does not divide the {sequences} sequences of a batch; "
            f"use one of {divisors(sequences)}"
        )


def _held_out(run: Run) -> Iterator[str]:
    validation = run.data.validation
    for source in run.data.sources:
        if isinstance(validation, str) and isinstance(source.data, str):
            if _place(validation) == _place(source.data):
                yield (
                    f"data.validation={validation} is the folder of data.train={source.data}: nothing would be held "
                    "out; give other data, or data.validation=null"
                )
        elif (
            validation is not None
            and not isinstance(validation, str)
            and _examples(validation) == _examples(source.data)
        ):
            yield (
                f"data.validation={validation.kind} has the examples of data.train: nothing would be held out; "
                f"give data.validation another {'part' if 'part' in type(validation).model_fields else 'seed'}"
            )


def _place(folder: str) -> object:
    return folder.partition("?")[0].rstrip("/") if "://" in folder else Path(folder).resolve()


def _examples(task: Any) -> Any:
    """Which examples a task or records have, but for how many."""
    if isinstance(task, Records):
        return Path(task.folder).expanduser().resolve(), task.part
    return task.model_copy(update={"num_examples": 1}) if hasattr(task, "num_examples") else task


def _mixture(run: Run) -> Iterator[str]:
    sources = run.data.sources
    names = [source.name for source in sources]
    if not sources:
        yield "data.train=[] holds no source; name at least one"
    if len(set(names)) < len(names):
        yield f"data.train has two sources of one name, among {', '.join(names)}; every name needs to be another"
    for step in sorted({step for source in sources for step in source.changes}):
        if step >= run.num_steps:
            yield (
                f"data.train has a weight from step {step} on, and num_steps={run.num_steps} ends before it; "
                "take it out, or train longer"
            )
        elif not any(source.weight_at(step) for source in sources):
            yield f"data.train gives no source a weight at step {step}; give one of {', '.join(names)} more than 0"


def _tasks(run: Run) -> Iterator[str]:
    for task in (*(source.data for source in run.data.sources), run.data.validation):
        if isinstance(task, Chains) and task.min_hops > task.max_hops:
            yield f"min_hops={task.min_hops} of the chains is above max_hops={task.max_hops}; swap them"
        if isinstance(task, Graphs) and task.min_path > task.max_path:
            yield f"min_path={task.min_path} of the graphs is above max_path={task.max_path}; swap them"
        if isinstance(task, Maze) and task.min_path > task.max_path:
            yield f"min_path={task.min_path} of the mazes is above max_path={task.max_path}; swap them"


def _masking(run: Run) -> Iterator[str]:
    masking, model = run.data.masking, run.model
    if masking is None:
        return
    if model.attention_mask != "full":
        yield (
            f"data.masking hides tokens that are found again from both sides, and model.attention_mask="
            f"{model.attention_mask} shows one; use model.attention_mask=full, or data.masking=null"
        )
    if masking.mask_token >= model.vocab_size:
        yield (
            f"data.masking.mask_token={masking.mask_token} has no row in model.vocab_size={model.vocab_size}; use a "
            f"token below that, or at least {masking.mask_token + 1} of them"
        )
    if masking.masked_share + masking.random_share > 1:
        yield (
            f"data.masking.masked_share={masking.masked_share} and random_share={masking.random_share} are more than "
            "all of the chosen places; use shares of at most 1 together"
        )
    data = [source.data for source in run.data.sources]
    data += [run.data.validation] if run.data.validation is not None else []
    for examples in (part for part in data if not isinstance(part, str)):
        yield (
            f"data.masking hides tokens of texts, and {examples.kind} has answers of its own; use token datasets only, "
            "or data.masking=null"
        )


RULES: Rules = (_batch, _held_out, _mixture, _tasks, _masking)
