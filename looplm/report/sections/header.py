"""What stands first: what the run is, what its numbers say, and the most important of them."""

from looplm.config.schema import UniformDepth
from looplm.report import pieces
from looplm.report.exit_verdict import exit_verdicts
from looplm.report.found import Found
from looplm.report.verdict import Verdict, verdicts

EVALUATE = "`looplm eval WORKDIR` makes it"


def header(found: Found) -> str:
    """Return the head of the page below its title."""
    said = (
        verdicts(found.sweep) if found.sweep else [Verdict("neutral", f"No depth has been compared yet; {EVALUATE}.")]
    )
    said += exit_verdicts(found.exits, found.kv, found.first_states)
    said += [Verdict("bad", f"Step {note['step']:,}: {note['text']}.") for note in found.notes]
    told = [pieces.paragraph(text) for text in _summary(found)]
    return "\n".join([*told, pieces.verdict_list(said), pieces.tiles(_tiles(found))])


def _summary(found: Found) -> list[str]:
    run, history, sweep, model = found.run, found.history, found.sweep, found.run.model
    loops = pieces.count(run.loop.num_loops, "loop")
    if isinstance(run.loop.depth, UniformDepth):
        loops = f"{run.loop.depth.min_loops} to {pieces.count(run.loop.depth.max_loops, 'loop')} a step"
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


def _tiles(found: Found) -> dict[str, str]:
    history, sweep = found.history, found.sweep
    facts = {"steps": f"{history.last_step:,}", "training loss": pieces.number(history.last("train/loss"))}
    if sweep and (trained := sweep.trained):
        facts["held-out loss"] = pieces.number(trained.loss)
        if trained.bits_per_byte is not None:
            facts["bits per byte"] = pieces.number(trained.bits_per_byte)
        facts["next-token accuracy"] = pieces.percent(trained.accuracy)
    if (rate := history.median("perf/tokens_per_s")) is not None:
        facts["tokens per second"] = pieces.number(rate, 0)
    return facts
