"""The run itself: its data, its facts and its settings."""

import json

from looplm.config.load import leaves
from looplm.report import pieces
from looplm.report.found import Found


def sources(found: Found) -> str:
    """Return what was read of every source; nothing where that was not counted."""
    run, history = found.run, found.history
    tokens = {source.name: history.last(f"data/tokens_{source.name}") for source in run.data.sources}
    read = {name: value for name, value in tokens.items() if value is not None}
    if not read:
        return ""
    total = max(1.0, sum(read.values()))
    rows = [
        (
            name,
            pieces.number(value, 0),
            pieces.percent(value / total, 2),
            pieces.number(history.last(f"data/epochs_{name}"), 2),
        )
        for name, value in read.items()
    ]
    numbers = pieces.table(("source", "tokens", "share", "epochs"), rows, caption="Read since the run began.")
    return pieces.section("Data", numbers)


def facts(found: Found) -> str:
    """Return the numbers of the run as a whole."""
    run, history = found.run, found.history
    seconds = history.median("perf/step_s")
    told = {
        "steps": f"{history.last_step:,} of {run.num_steps:,}",
        "tokens seen": f"{history.last_step * run.data.batch_tokens:,}",
        "parameters": pieces.number(history.last("model/num_parameters"), 0),
        "median step time": f"{seconds:.3g} s" if seconds is not None else "-",
        "compile time": f"{compile_s:.1f} s" if (compile_s := history.last("perf/compile_s")) is not None else "-",
        "skipped updates": pieces.number(history.last("optim/skipped"), 0),
    }
    if unlabelled := history.last("optim/unlabelled"):
        told["steps without a label"] = f"{unlabelled:,.0f}"
    if broken := history.non_finite("train/loss"):
        told["steps whose loss is not finite"] = f"{broken:,}"
    rows = [(name, value) for name, value in told.items() if value != "-"]
    return pieces.section("Run", pieces.table(("fact", "value"), rows, kind="plain"))


def settings(found: Found) -> str:
    """Return the whole config, to unfold."""
    rows = [(key, json.dumps(value)) for key, value in leaves(found.run).items()]
    listed = pieces.table(("key", "value"), rows, kind="plain leaves", box="")
    return pieces.section("Configuration", pieces.collapsed(f"All {len(rows)} settings of this run", listed))
