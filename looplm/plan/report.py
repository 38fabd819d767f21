"""The answer of `looplm plan`, as tables and as JSON."""

from dataclasses import asdict, dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from looplm.compile.report import CompileReport
from looplm.plan.advice import Advice
from looplm.plan.budget import Budget
from looplm.plan.estimate import MARGIN, Estimate
from looplm.plan.loops import Looped
from looplm.plan.recipes import LeftOut
from looplm.train.memory import gib

SHOWN = 6


@dataclass(frozen=True)
class Plan:
    """A run on chips that are not there."""

    config: str
    chips: str
    num_chips: int
    num_devices: int
    num_params: int
    num_active_params: int
    sequence_length: int
    recipes: list[Estimate]
    """From the fastest by the bound."""
    left_out: list[LeftOut]
    budget: Budget
    looped: list[Looped]
    no_loops: str
    """Why nothing is said of other depths."""
    advice: list[Advice]
    compiled: CompileReport | None

    @property
    def best(self) -> Estimate:
        """The fastest by the bound."""
        return self.recipes[0]

    def as_json(self) -> dict[str, Any]:
        """Return what is printed, in bytes, FLOPs and seconds."""
        return {
            "config": self.config,
            "chips": self.chips,
            "num_chips": self.num_chips,
            "num_devices": self.num_devices,
            "num_params": self.num_params,
            "num_active_params": self.num_active_params,
            "margin_of_temporaries": MARGIN,
            "recipes": [_record(one) for one in self.recipes],
            "left_out": [one._asdict() for one in self.left_out],
            "budget": asdict(self.budget) | {"cost": self.budget.cost},
            "loops": [{"num_loops": one.num_loops} | _record(one.estimate) for one in self.looped],
            "advice": [one._asdict() for one in self.advice],
            "compiled": self.compiled and self.compiled.as_json(),
        }


def _record(one: Estimate) -> dict[str, Any]:
    time = one.time._asdict() | {"step_s": one.time.step_s}
    return {
        "mesh": {axis: size for axis, size in one.recipe.mesh.items() if size > 1},
        "settings": one.recipe.settings,
        "state_bytes": round(one.state_bytes),
        "temporary_bytes": round(one.temporary_bytes),
        "available_bytes": one.available_bytes,
        "fits": one.fits,
        "flops_per_token": one.flops_per_token.model,
        "hardware_flops_per_token": one.flops_per_token.hardware,
        "time": time,
        "bound_by": one.bound_by,
        "tokens_per_s": one.tokens_per_s,
        "mfu": one.mfu,
    }


def print_plan(plan: Plan, console: Console) -> None:
    """Print all of it."""
    best, budget = plan.best, plan.budget
    active = f" ({plan.num_active_params:,} active)" if plan.num_active_params < plan.num_params else ""
    console.print(f"{plan.config} on {plan.chips}")
    console.print(
        f"{plan.num_params:,} parameters{active}; {best.flops_per_token.model:.3g} FLOPs a token; steps of "
        f"{best.tokens_per_step:,} tokens, sequences of {plan.sequence_length:,}"
    )
    console.print(
        f"recipes, from the fastest by the bound; GiB of one device, which has {gib(best.available_bytes)}; "
        "micro-batches: their number x sequences of a device"
    )
    console.print(_recipes(plan.recipes[:SHOWN]))
    for one in plan.left_out:
        console.print(f"left out: {one.split} ({one.why})")
    console.print(
        "No step is faster than the larger of products and links at the peaks; large products alone reach 65-80 % of "
        "it. "
        f"The traffic of the memory, and what is held beside the state, are estimates; the latter within "
        f"{MARGIN:.0%} of what was compiled for TPUs (docs/scaling.md), and a recipe has to fit with that on top."
    )
    console.print(
        "the first recipe: " + " ".join(f"--set {key}={value}" for key, value in best.recipe.settings.items())
    )
    for line in budget.lines():
        console.print(line)
    console.print("a loop more or less, with the first recipe:" if plan.looped else f"other depths: {plan.no_loops}")
    if plan.looped:
        console.print(_loops(plan.looped, best))
    console.print("what published rules say (advice, fitted on other models):")
    for rule in plan.advice:
        console.print(f"  {rule.about}: {rule.says} [{rule.source}]")
    if (compiled := plan.compiled) is not None:
        held = compiled.memory.total
        console.print(
            f"compiled: {gib(held)} on every device, {held / best.total_bytes:.2f} times the estimate; "
            + (f"MFU by its bound {compiled.mfu:.1%}" if compiled.mfu is not None else "it does not fit")
        )


def _recipes(found: list[Estimate]) -> Table:
    headers = ("mesh", "micro-\nbatches", "remat,\ngather", "GiB", "products / memory\n/ links, s", "tokens/s", "MFU")
    table = Table(*headers, box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for one in found:
        recipe, time = one.recipe, one.time
        # The traffic of the memory is no bound.
        sign = "~" if one.bound_by == "memory" else "<"
        table.add_row(
            ", ".join(f"{axis} {size}" for axis, size in recipe.mesh.items() if size > 1) or "one device",
            f"{recipe.micro_batches} x {recipe.rows}",
            f"{recipe.form.remat}, {recipe.form.gather}",
            f"{one.total_bytes / 2**30:.2f}",
            f"{time.compute_s:.3g} / {time.memory_s:.3g} / {time.links_in_loops_s + time.links_once_s:.2g}",
            f"{sign} {one.tokens_per_s:,.0f}",
            f"{sign} {one.mfu:.0%}",
        )
    return table


def _loops(found: list[Looped], best: Estimate) -> Table:
    table = Table("loops", "FLOPs a token", "time of a step, s", "GiB", "fits", box=SIMPLE_HEAD)
    for number, one in found:
        flops, step = one.flops_per_token.model, one.time.step_s
        table.add_row(
            str(number),
            f"{flops:.3g} ({flops / best.flops_per_token.model:.2f} x)",
            f"> {step:.3g} ({step / best.time.step_s:.2f} x)",
            f"{one.total_bytes / 2**30:.2f}",
            "yes" if one.fits else "no",
        )
    return table
