"""The command `looplm plan`."""

from collections.abc import Collection
from typing import NamedTuple

from looplm.compile.report import CompileReport, report
from looplm.compile.topology import described_devices
from looplm.config.load import override
from looplm.config.schema import Run
from looplm.errors import UserError
from looplm.plan.advice import advice
from looplm.plan.budget import Budget, parse_tokens
from looplm.plan.chips import Chips, parse_chips
from looplm.plan.estimate import Estimate
from looplm.plan.loops import loops
from looplm.plan.recipes import Search
from looplm.plan.report import Plan
from looplm.sharding.mesh import build_mesh
from looplm.train.program import Program


class Wish(NamedTuple):
    """What is asked beside the run and the chips."""

    tokens: str | None = None
    price: float | None = None
    mfu: float | None = None
    compile: bool = False

    def check(self) -> float | None:
        """Return the number of tokens, None where the config's steps say it. Raises UserError for a wrong wish."""
        if self.price is not None and not 0 <= self.price < 1e9:
            raise UserError(f"--price {self.price:g} is no price of a chip-hour; give a number that is not negative")
        if self.mfu is not None and not 0 < self.mfu <= 1:
            raise UserError(f"--mfu {self.mfu:g} is no share of the peak; give a number above 0 and up to 1, e.g. 0.4")
        return None if self.tokens is None else parse_tokens(self.tokens)


def make_plan(config: str, run: Run, words: str, wish: Wish, given: Collection[str] = ()) -> Plan:
    """Plan a run on chips that are not there.

    Args:
        words: `--chips`.
        given: leaves of the run that the user has set; they are kept.

    Raises UserError for chips that are not known, and where no recipe fits them.
    """
    tokens, chips = wish.check(), parse_chips(words)
    if wish.compile and chips.platform != "tpu":
        raise UserError(f"--compile knows the compiler of TPUs alone; leave it out for {words}")
    search = Search(run, chips, given)
    found = search.search()
    best = found.recipes[0]
    looped, no_loops = loops(run, chips, search.traces, best)
    budget = _budget(tokens or float(run.num_steps * run.data.batch_tokens), best, chips, wish)
    return Plan(
        config,
        str(chips),
        chips.count,
        chips.num_devices,
        search.lm.num_params,
        search.lm.num_active_params,
        run.data.sequence_length,
        found.recipes,
        found.left_out,
        budget,
        looped,
        no_loops,
        advice(run, search.lm, best.flops_per_token.model, budget.tokens),
        _compiled(run, words, best) if wish.compile else None,
    )


def _budget(tokens: float, best: Estimate, chips: Chips, wish: Wish) -> Budget:
    flops = tokens * best.flops_per_token.model
    expected = None
    if wish.mfu is not None:
        expected = flops / (wish.mfu * chips.num_devices * chips.device.peak_flops) / 86400
    steps = -(-int(tokens) // best.tokens_per_step)
    days = tokens / best.tokens_per_s / 86400
    return Budget(tokens, steps, flops, days, expected, wish.mfu, chips.count, wish.price)


def _compiled(run: Run, words: str, best: Estimate) -> CompileReport:
    run = override(run, {f"mesh.{axis}": size for axis, size in best.recipe.mesh.items()} | best.recipe.settings)
    return report(Program(run, build_mesh(run.mesh, described_devices(words))), words)
