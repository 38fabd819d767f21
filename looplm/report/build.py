"""From a run directory to its report: reads the files, chooses what there is to show, writes one HTML file."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from looplm.config.load import from_json, leaves
from looplm.config.schema import Model, MoE, Run, UniformDepth
from looplm.data.folder import obstacle, write_result
from looplm.errors import UserError
from looplm.metrics.events import NOTE, read_events
from looplm.metrics.loads import read_loads
from looplm.metrics.sinks import read_metrics
from looplm.metrics.sweep import Sweep, read_sweeps
from looplm.metrics.timing import PARTS, TIME, goodput, whole
from looplm.report import pieces, plots
from looplm.report.history import History
from looplm.report.page import page
from looplm.report.verdict import Verdict, verdicts

EVALUATE = "`looplm eval WORKDIR` makes it"


def write_report(workdir: Path, out: Path | None = None) -> Path:
    """Writes WORKDIR/report.html, or `out`, from its config, metrics and depth sweeps, and returns its path.

    The file is complete in itself and replaces an earlier one at once. Sections without numbers are left out with a
    line that says what is missing. Raises UserError for a missing run directory, one without metrics, broken files, or
    a place that cannot be written.
    """
    workdir = Path(workdir)
    target = workdir / "report.html" if out is None else out
    if not workdir.is_dir():
        raise UserError(f"run directory {workdir} does not exist; give the --workdir of `looplm train`")
    if reason := obstacle(target):
        raise UserError(f"{target} cannot be written: {reason}; give a file elsewhere with --out")
    config, file = workdir / "config.json", workdir / "metrics.jsonl"
    was_imported = not file.exists() and config.is_file() and not from_json(config).data.sources
    rows = [] if was_imported else read_metrics(file)
    sweeps = read_sweeps(workdir / "eval")
    if not rows and not sweeps:
        raise UserError(
            f"{workdir / 'metrics.jsonl'} holds no step yet; wait for the first step of `looplm train`, or score the "
            "weights with `looplm eval`"
        )
    events = read_events(workdir / "events.jsonl")
    seconds = whole([event for event in events if event["kind"] == TIME])
    notes = [event for event in events if event["kind"] == NOTE]
    run, loads = from_json(config), read_loads(workdir / "experts.jsonl")
    html = build_report(workdir.resolve().name, run, History(rows), sweeps, seconds, loads, notes)
    # The name of a folder may hold bytes that are no UTF-8.
    write_result(target, html.encode("utf-8", errors="replace"))
    return target


def build_report(
    name: str,
    run: Run,
    history: History,
    sweeps: list[Sweep],
    seconds: Mapping[str, float] | None = None,
    loads: Sequence[Mapping[str, Any]] = (),
    notes: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Returns the HTML; `sweeps` are ordered by step, and the last one is shown in full.

    seconds: where the wall-clock went, see `metrics.timing`.
    loads: of every expert, see `metrics.loads`.
    notes: what was said about the run while it went on, events of the kind `note`.
    """
    sweep = sweeps[-1] if sweeps else None
    found = verdicts(sweep) if sweep else [Verdict("neutral", f"No depth has been compared yet; {EVALUATE}.")]
    found += [Verdict("bad", f"Step {note['step']:,}: {note['text']}.") for note in notes]
    header = [pieces.paragraph(text) for text in _summary(run, history, sweep)]
    header += [pieces.verdict_list(found), pieces.tiles(_tiles(run, history, sweep))]
    sections = [_depths(sweep), _training(run, history), _experts(run.model, history, loads), _sources(run, history)]
    sections += [_exits(run, sweep), _texts(sweep), _sweeps(sweeps)]
    sections += [_facts(run, history), _time(seconds or {}), _config(run)]
    return page(escape(f"looplm report: {name}"), "\n".join(header), [part for part in sections if part])


def _summary(run: Run, history: History, sweep: Sweep | None) -> list[str]:
    model, depth = run.model, run.loop.depth
    loops = pieces.count(run.loop.num_loops, "loop")
    if isinstance(depth, UniformDepth):
        loops = f"{depth.min_loops} to {pieces.count(depth.max_loops, 'loop')} a step"
    block = pieces.count(model.block_layers, "layer")
    text = f"A looped language model of width {model.dim} with a shared block of {block}"
    if model.prelude_layers or model.coda_layers:
        text += f" ({pieces.count(model.prelude_layers, 'layer')} before it, {model.coda_layers} after it)"
    if run.data.sources:
        text += f". It was trained with {loops} for {history.last_step:,} of {run.num_steps:,} steps."
    else:
        text += f". It was imported, runs {loops}, and was not trained here."
    if sweep is None:
        return [text]
    scored = f"{sweep.num_tokens:,} tokens in {pieces.count(sweep.num_documents, 'document')} of {sweep.data}"
    told = f"The held-out numbers are from step {sweep.step:,}, on {scored}."
    if sweep.step < history.last_step:
        told += f" Training has gone on to step {history.last_step:,} since; `looplm eval WORKDIR` scores it."
    return [text, told]


def _tiles(run: Run, history: History, sweep: Sweep | None) -> dict[str, str]:
    facts = {"steps": f"{history.last_step:,}", "training loss": pieces.number(history.last("train/loss"))}
    if sweep and (trained := sweep.trained):
        facts["held-out loss"] = pieces.number(trained.loss)
        if trained.bits_per_byte is not None:
            facts["bits per byte"] = pieces.number(trained.bits_per_byte)
        facts["next-token accuracy"] = f"{pieces.number(100 * trained.accuracy, 1)} %"
    if (rate := history.median("perf/tokens_per_s")) is not None:
        facts["tokens per second"] = pieces.number(rate, 0)
    return facts


def _depths(sweep: Sweep | None) -> str:
    if sweep is None:
        return pieces.section("Loss by depth", _missing("The depth sweep is missing"))
    rows = [
        (
            str(row.depth),
            pieces.number(row.loss, 4),
            f"{pieces.number(row.low, 4)} to {pieces.number(row.high, 4)}",
            pieces.number(row.bits_per_byte, 4),
            f"{pieces.number(100 * row.accuracy, 2)} %",
        )
        for row in sweep.rows
    ]
    marked = next((index for index, row in enumerate(sweep.rows) if row.depth == sweep.trained_depth), None)
    caption = f"Step {sweep.step:,}; the trained depth is bold."
    numbers = pieces.table(
        ("depth", "loss", "95 % interval", "bits per byte", "accuracy"), rows, caption=caption, marked=marked
    )
    chart = pieces.figure(plots.loss_by_depth(sweep), "Held-out loss by depth; bars are 95 % intervals.")
    return pieces.section("Loss by depth", pieces.grid(chart, numbers))


def _training(run: Run, history: History) -> str:
    loss = plots.training_loss(history, run.loop.num_loops)
    charts = (
        pieces.figure(loss, "Training loss of every step, and smoothed."),
        pieces.figure(plots.loop_losses(history), "Training loss after each loop, smoothed."),
        pieces.figure(plots.stack(history, plots.OPTIMIZER), "Learning rate and gradient norm."),
        pieces.figure(plots.stack(history, plots.LOOPS), "What the loops do to the state."),
        pieces.figure(plots.stack(history, plots.THROUGHPUT), "Tokens per second."),
    )
    missing = "" if loss else pieces.paragraph("The training loss is missing; `looplm train` measures it.", "soft")
    return pieces.section("Training", missing, pieces.grid(*charts))


def _experts(model: Model, history: History, loads: Sequence[Mapping[str, Any]]) -> str:
    _, dead = history.column("moe/dead")
    if not len(dead):
        return ""
    loops = sorted(history.numbered("moe/load_max_loop_"))
    columns = ("moe/load_max", "moe/load_min", "moe/changed")
    rows = [
        (name, *(pieces.number(history.at_the_end(f"{column}{suffix}"), 2) for column in columns))
        for name, suffix in (("all", ""), *((str(loop), f"_loop_{loop}") for loop in loops))
    ]
    caption = "Choices of the most and the least loaded expert of a step, over the mean (1 is even), of all layers; "
    caption += "and the share of a token's experts that the loop before had not chosen. At the end, smoothed."
    numbers = pieces.table(("loop", "most loaded", "least loaded", "changed"), rows, caption=caption)
    chart = pieces.figure(plots.stack(history, plots.EXPERTS), "Balance of the experts in every step.")
    told = f"Experts without a token in any loop of a step: {dead[-1]:.0f} at the end, {dead.max():.0f} at most."
    parts = [pieces.paragraph(told), pieces.grid(chart, numbers)]
    moe, shown = model.feed_forward_of("block"), [row for row in loads if row["loops"] and "moe/load/block" in row]
    if isinstance(moe, MoE) and shown:
        layers = [layer for layer in range(model.block_layers) if layer not in moe.dense_layers]
        picture = plots.loads(shown[-1]["moe/load/block"], shown[-1]["loops"], layers)
        parts.append(pieces.figure(picture, f"Every expert of the block at step {shown[-1]['step']:,}."))
    return pieces.section("Experts", *parts)


def _sources(run: Run, history: History) -> str:
    tokens = {source.name: history.last(f"data/tokens_{source.name}") for source in run.data.sources}
    read = {name: value for name, value in tokens.items() if value is not None}
    if not read:
        return ""
    total = max(1.0, sum(read.values()))
    rows = [
        (
            name,
            pieces.number(value, 0),
            f"{pieces.number(100 * value / total, 2)} %",
            pieces.number(history.last(f"data/epochs_{name}"), 2),
        )
        for name, value in read.items()
    ]
    numbers = pieces.table(("source", "tokens", "share", "epochs"), rows, caption="Read since the run began.")
    return pieces.section("Data", numbers)


def _exits(run: Run, sweep: Sweep | None) -> str:
    if run.model.exit_gate is None and not (sweep and (sweep.exit_histogram or sweep.sample)):
        return pieces.section("Exits", pieces.paragraph("The model has no exit gate (`model.exit_gate`).", "soft"))
    if sweep is None or not (sweep.exit_histogram or sweep.sample):
        return pieces.section("Exits", _missing("What the gate does on held-out text is missing"))
    parts = []
    if sweep.exit_histogram:
        parts.append(pieces.grid(pieces.figure(plots.exits(sweep.exit_histogram), "Where tokens exit.")))
    else:
        parts.append(_missing("The exit histogram is missing"))
    if sweep.sample and sweep.sample.exit_depth:
        loops = max(sweep.trained_depth, *sweep.sample.exit_depth, 1)
        parts += ["<h3>Held-out text, coloured by exit</h3>", pieces.coloured_text(sweep.sample, loops)]
    else:
        parts.append(_missing("The text sample is missing"))
    return pieces.section("Exits", *parts)


def _texts(sweep: Sweep | None) -> str:
    if sweep is None or not sweep.generations:
        return ""
    return pieces.section("Generated text", pieces.side_by_side(sweep.generations))


def _sweeps(sweeps: list[Sweep]) -> str:
    if len(sweeps) < 2:
        return ""
    depths = sorted({row.depth for sweep in sweeps for row in sweep.rows})
    rows = []
    for sweep in sweeps:
        losses = {row.depth: row.loss for row in sweep.rows}
        rows.append((f"{sweep.step:,}", *(pieces.number(losses.get(depth), 4) for depth in depths)))
    headers = ("step", *(f"depth {depth}" for depth in depths))
    return pieces.section("Held-out loss over training", pieces.table(headers, rows, caption="Nats per token."))


def _facts(run: Run, history: History) -> str:
    seconds = history.median("perf/step_s")
    facts = {
        "steps": f"{history.last_step:,} of {run.num_steps:,}",
        "tokens seen": f"{history.last_step * run.data.batch_tokens:,}",
        "parameters": pieces.number(history.last("model/num_parameters"), 0),
        "median step time": f"{seconds:.3g} s" if seconds is not None else "-",
        "compile time": f"{compile_s:.1f} s" if (compile_s := history.last("perf/compile_s")) is not None else "-",
        "skipped updates": pieces.number(history.last("optim/skipped"), 0),
    }
    if unlabelled := history.last("optim/unlabelled"):
        facts["steps without a label"] = f"{unlabelled:,.0f}"
    if broken := history.non_finite("train/loss"):
        facts["steps whose loss is not finite"] = f"{broken:,}"
    rows = [(name, value) for name, value in facts.items() if value != "-"]
    return pieces.section("Run", pieces.table(("fact", "value"), rows, kind="plain"))


def _time(seconds: Mapping[str, float]) -> str:
    if not seconds:
        return ""
    total = sum(seconds.values())
    parts = sorted(((value, part) for part, value in seconds.items() if value), reverse=True)
    rows = [
        (PARTS[part], pieces.number(value, 1), f"{pieces.number(100 * value / total, 1)} %") for value, part in parts
    ]
    rows.append(("all", pieces.number(total, 1), "100.0 %"))
    caption = "Wall-clock of the run over all its starts."
    told = pieces.table(("part", "seconds", "share"), rows, caption=caption, marked=len(rows) - 1)
    return pieces.section("Where the time went", pieces.paragraph(f"Goodput: {goodput(seconds):.1%}."), told)


def _config(run: Run) -> str:
    rows = [(key, json.dumps(value)) for key, value in leaves(run).items()]
    listed = pieces.table(("key", "value"), rows, kind="plain leaves")
    return pieces.section("Configuration", pieces.collapsed(f"All {len(rows)} settings of this run", listed))


def _missing(what: str) -> str:
    return pieces.paragraph(f"{what}; {EVALUATE}.", "soft")
