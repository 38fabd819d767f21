"""Says once, in words, when a run goes bad, with the setting that usually helps."""

from collections.abc import Iterable, Iterator, Mapping

from looplm.config.schema import MixtureAttention, MoE, NoInjection, Place, Run
from looplm.metrics.health import (
    ENOUGH_CHOICES,
    DeadExperts,
    ExitsOnOneLoop,
    Judgement,
    LossStands,
    Row,
    StateGrows,
    TokensAlike,
)
from looplm.train.notes import Notes

BALANCE = {
    "moe": "a rule of model.feed_forward.balance (bias_rate, auxiliary_weight) with a larger weight usually helps",
    "attention": "a larger model.attention.entropy_weight usually helps",
}
PLACES: tuple[Place, ...] = ("prelude", "block", "coda")


class Health:
    """A sink that judges rows and keeps none."""

    def __init__(self, run: Run, notes: Notes, so_far: Iterable[Row] = ()):
        """so_far: all rows of a run that is resumed, so that a restart changes no judgement."""
        self.notes, self.judgements = notes, list(judgements(run))
        for row in so_far:
            self.write(int(row["step"]), row)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        for judgement, remedy in self.judgements:
            if bad := judgement.look(metrics):
                self.notes.tell(f"health/{judgement.about}", step, f"{bad}; {remedy}")

    def close(self) -> None:
        """Nothing is left to write."""


def judgements(run: Run) -> Iterator[tuple[Judgement, str]]:
    """Yields what applies to a run, and what usually helps there."""
    model, optim, warmup = run.model, run.optim, run.optim.schedule.warmup_steps
    lower_rate = f"a lower optim.learning_rate (now {optim.learning_rate:g})"
    yield ExitsOnOneLoop(), f"a larger objective.entropy_weight usually helps, or {lower_rate}"
    inject = "model.injection=add, or " if isinstance(model.injection, NoInjection) else ""
    yield TokensAlike(warmup=warmup), f"{inject}{lower_rate} usually helps"
    norm = "" if model.norm_at_loop_end else "model.norm_at_loop_end=true, or "
    yield StateGrows(), f"{norm}{lower_rate} usually helps"
    for branch, choices in choices_of_experts(run).items():
        if choices >= ENOUGH_CHOICES:
            yield DeadExperts(branch, warmup=warmup), BALANCE[branch]
    yield (
        LossStands(peak_rate=optim.learning_rate, vocab_size=model.vocab_size),
        f"another optim.learning_rate (now {optim.learning_rate:g}) usually helps: a lower one, or a higher one where "
        "the gradient norm is small",
    )


def choices_of_experts(run: Run) -> dict[str, float]:
    """How often an expert is chosen on average in a step, by branch (`metrics.routers.BRANCHES`); the least of any."""
    model, tokens, found = run.model, run.data.batch_tokens, dict[str, float]()
    sections = [model.feed_forward_of(place) for place in PLACES if model.layers_of(place)]
    for branch, parts in (("moe", sections), ("attention", [model.attention])):
        shares = [x.experts_per_token / x.num_experts for x in parts if isinstance(x, MoE | MixtureAttention)]
        if shares:
            found[branch] = tokens * min(shares)
    return found
