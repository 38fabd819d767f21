"""Adapters, and which parameters learn. Whether a part has that name is known where the model is built."""

from collections.abc import Iterator

from looplm.config.check.depth import max_loops
from looplm.config.check.rule import Rules
from looplm.config.schema import GateImprovement, LoRA, Run


def _adapter(run: Run) -> Iterator[str]:
    adapter, default = run.model.adapter, LoRA()
    if adapter is None:
        return
    if not adapter.targets:
        yield f"model.adapter.targets=[] adapts nothing; use e.g. {list(default.targets)}, or model.adapter=null"
    if adapter.loops is not None and run.loop.depth_per == "sequence":
        yield (
            f"model.adapter.loops={adapter.loops} gives loops matrices of their own, and loop.depth_per=sequence has "
            "sequences at different loops at a time; use loop.depth_per=batch, or model.adapter.loops=null"
        )
    largest = max_loops(run)
    if adapter.loops is not None and largest is not None and adapter.loops > largest:
        yield (
            f"model.adapter.loops={adapter.loops} is more than the {largest} loops that run, and the rest would not "
            f"learn; use {largest}"
        )
    if adapter.rank == 0 and (adapter.dropout or adapter.loop_dropout):
        yield "model.adapter.rank=0 adds nothing that could be left out; set dropout and loop_dropout to 0"


def _learning(run: Run) -> Iterator[str]:
    if run.optim.train and isinstance(run.objective, GateImprovement):
        yield (
            f"optim.train={list(run.optim.train)} has no part in objective.kind=gate, which trains the gate alone; "
            "leave it out"
        )


RULES: Rules = (_adapter, _learning)
