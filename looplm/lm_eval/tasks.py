"""`looplm eval --tasks`: tasks of lm-evaluation-harness at several depths, to the screen and to WORKDIR/eval."""

import contextlib
import hashlib
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from looplm.data.folder import obstacle, write_result
from looplm.errors import UserError, warn
from looplm.lm_eval.library import require_library
from looplm.lm_eval.opening import parse_loops
from looplm.lm_eval.table import table_of

LONGEST_NAME = 80
Results = dict[str, Any]
"""What the harness gives of an evaluation."""


def evaluate_tasks(
    workdir: Path,
    tasks: str,
    *,
    task_path: Path | None = None,
    depths: str | None = None,
    limit: int | None = None,
    step: int | None = None,
    ema: bool = False,
    out: Path | None = None,
    console: Console,
) -> dict[int, Results]:
    """Evaluate tasks at all depths, print a table, and save the harness's results of every depth.

    Args:
        workdir: a run, or an official model's folder; in the latter nothing is saved.
        tasks: names, comma-separated, of the harness or of `task_path`.
        task_path: folder with task files (YAML). Data files that they name are looked for in it.
        depths: e.g. `1,2,4,8`; None: 1 to the trained number.
        limit: examples of every task, the first ones.
        out: a JSON file of all depths.

    Returns {depth: results}. Raises UserError, before anything is computed, for what is not there or not known.
    """
    require_library()
    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit} must be at least 1; leave it out for all examples")
    if out is not None and (reason := obstacle(out)):
        raise UserError(f"--out {out} cannot be written: {reason}; name another file")
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    found, manager = load_tasks(names, task_path)
    wanted = None if depths is None else parse_loops(_joined(depths), 1)
    arguments = {"workdir": str(workdir), "step": step, "ema": ema}
    answers = _model(**arguments).answers
    trained = answers.model.loop.num_loops
    wanted = wanted or tuple(range(1, trained + 1))
    answers.ask(wanted)
    results = {depth: _evaluate(arguments | {"loops": depth}, found, manager, limit) for depth in wanted}
    weights = f"step {answers.model.step}{', averaged weights' * ema}" if answers.model.run else "official weights"
    console.print(f"{weights}; batches in which likelihoods of all depths were computed: {answers.num_passes}")
    console.print(table_of(results, trained))
    if answers.model.run is not None:
        _save(workdir / "eval", f"lm_eval-{answers.model.step}{'-ema' * ema}-{_short(names)}", results, console)
    if out is not None:
        write_result(out, _as_json({str(depth): result for depth, result in results.items()}))
    return results


def load_tasks(names: Sequence[str], folder: Path | None) -> tuple[list[Any], Any]:
    """Return the harness's tasks and groups of these names, and what it found them with.

    folder: looked into first. Raises UserError for a name that is nowhere, and for a task whose file or data cannot be
    read.
    """
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # progress bars of the harness, read when they are imported
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if folder is not None and not folder.is_dir():
        raise UserError(f"--task-path {folder} is no folder; name one with task files (YAML)")
    folder = folder.resolve() if folder is not None else None
    own = TaskManager(include_path=str(folder), include_defaults=False) if folder is not None else None
    manager = own if own is not None and set(names) <= set(own.all_tasks) else None
    if manager is None:
        manager = TaskManager(include_path=str(folder) if folder is not None else None)
    for name in names:
        if name not in manager.all_tasks:
            there = f"; {folder} has {', '.join(own.all_tasks) or 'none'}" if own is not None else ""
            raise UserError(
                f"--tasks {name!r} is none of the harness's {len(manager.all_tasks)} tasks{there}; give the folder of "
                "its file with --task-path"
            )
    # A task file names its data files from where its author stood: beside it.
    with contextlib.chdir(folder) if folder is not None else contextlib.nullcontext():
        found: list[Any] = []
        for name in names:
            try:
                found.append(_of(manager.load([name])))
            except Exception as error:  # whatever a task's file or data come up with
                raise UserError(f"task {name!r} cannot be loaded: {_reason(error)}") from error
    return [each for many in found for each in many], manager


def _model(**arguments: Any) -> Any:
    from looplm.lm_eval.model import LooplmModel

    return LooplmModel(**arguments)


def _evaluate(arguments: dict[str, Any], tasks: list[Any], manager: Any, limit: int | None) -> Results:
    from lm_eval import simple_evaluate

    result = simple_evaluate(
        _model(**arguments),
        model_args=arguments,
        tasks=list(tasks),
        task_manager=manager,
        limit=limit,
        log_samples=True,
    )
    assert result is not None, "there is one process"
    return dict(result)


def _of(loaded: Any) -> list[Any]:
    """What stands for a name: a group, or tasks."""
    inside = {name for children in loaded["group_map"].values() for name in children}
    groups = [group for name, group in loaded["groups"].items() if name not in inside]
    return groups or list(loaded["tasks"].values())


def _reason(error: BaseException | None) -> str:
    """What went wrong, and why, on one line."""
    texts = []
    while error is not None:
        texts.append(" ".join(str(error).split())[:200] or type(error).__name__)
        error = error.__cause__
    return ": ".join(dict.fromkeys(texts))


def _joined(depths: str) -> str:
    if "+" in depths:
        raise UserError(f"--depths {depths!r} is no comma-separated list of loop counts, e.g. 1,2,4,8")
    return depths.replace(",", "+")


def _short(names: Sequence[str]) -> str:
    text = "+".join(name.replace("/", "_") for name in names)
    return text if len(text) <= LONGEST_NAME else f"{len(names)}-tasks-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _save(folder: Path, name: str, results: dict[int, Results], console: Console) -> None:
    try:
        for depth, result in results.items():
            write_result(folder / f"{name}-depth-{depth}.json", _as_json(result))
    except OSError as error:
        warn(f"{folder} could not be written ({error.strerror}); the results are not there")
        return
    console.print(f"saved as {folder / name}-depth-*.json", soft_wrap=True)


def _as_json(value: Any) -> bytes:
    from lm_eval.utils import handle_non_serializable

    return (json.dumps(value, indent=2, default=handle_non_serializable, ensure_ascii=False) + "\n").encode()
