"""What published rules say about tokens, batch, learning rate and depth.

They were fitted on other data and other models, few of them looped: advice to start from, each with its source.
"""

from typing import NamedTuple

from looplm.config.schema import AdamW, Muon, Run
from looplm.model.functional import FunctionalLM

TOKENS_PER_PARAMETER = 20
PHI = 0.46


class Advice(NamedTuple):
    """A rule, applied."""

    about: str
    says: str
    source: str


def advice(run: Run, lm: FunctionalLM, flops_per_token: float, tokens: float) -> list[Advice]:
    """Apply the rules to a run of so many tokens. flops_per_token: of training, at the mean depth."""
    compute, loops = flops_per_token * tokens, run.loop.num_loops
    looped = _num_params_of_block(lm)
    worth = lm.num_active_params + (loops**PHI - 1) * looped
    least = TOKENS_PER_PARAMETER * worth
    optimizer, batch = run.optim.optimizer, run.data.batch_tokens
    own = run.num_steps * batch
    found = [
        Advice(
            "parameters",
            f"with {loops} loops the {looped:.3g} of the block count {loops**PHI:.2f} times, {worth:.3g} in all",
            f"arXiv 2604.21106: N_once + r^{PHI} N_rec, fitted at 20 layers of depth",
        ),
        Advice(
            "tokens",
            f"{least:.3g} are optimal for that many parameters ({TOKENS_PER_PARAMETER} for each); the budget is "
            f"{tokens / least:.3g} times that. More is not wasted: the model gets better for its size",
            "arXiv 2203.15556, for models that do not loop",
        ),
        Advice(
            "batch",
            f"{batch_tokens_for(compute):.3g} tokens a step for {compute:.3g} FLOPs; the config has {batch:.3g}",
            "arXiv 2401.02954, eq. 1: 0.2920 C^0.3271; C here counts heads too",
        ),
        Advice(
            "largest batch",
            f"the critical one grows with the tokens alone: the config's {batch:.3g} for {own:.3g} tokens becomes "
            f"{batch * (tokens / own) ** 0.47:.3g}",
            "arXiv 2410.21676: D^0.47, hardly with the model; arXiv 1812.06162 measures it from the gradients' noise",
        ),
    ]
    if isinstance(optimizer, AdamW):
        says = f"{learning_rate_for(compute):.2g} at the peak; the config has {run.optim.learning_rate:.2g}"
        found.append(
            Advice("learning rate", says, "arXiv 2401.02954, eq. 1: 0.3118 C^-0.125, AdamW in models that do not loop")
        )
    elif isinstance(optimizer, Muon):
        says = f"no law for Muon; the config has {run.optim.learning_rate:.2g}. 4 loops wanted half the rate of none"
        found.append(Advice("learning rate", says, "github.com/kschwethelm/looped_nanochat, dev/LoopedLOG.md"))
    found.append(
        Advice(
            "depth",
            "with twice the compute 1.32 times the loops and 1.72 times the tokens are best",
            "arXiv 2604.12946: C^0.40 and C^0.78, mean depth of Parcae models of 140 M and 370 M",
        )
    )
    return found


def batch_tokens_for(compute: float) -> float:
    """Return the best number of tokens of a step (arXiv 2401.02954, eq. 1). compute: FLOPs of the training."""
    return 0.2920 * compute**0.3271


def learning_rate_for(compute: float) -> float:
    """Return the best peak rate of AdamW (arXiv 2401.02954, eq. 1)."""
    return 0.3118 * compute**-0.1250


def _num_params_of_block(lm: FunctionalLM) -> int:
    """How many parameters that a token meets are in the looped layers."""
    counts: list[int] = []

    def count(leaf: object, variable: object) -> None:
        if getattr(variable, "place", None) == "block":
            used, all_of_them = variable.used  # type: ignore[attr-defined]
            counts.append(leaf.size * used // all_of_them)  # type: ignore[attr-defined]

    lm.map(count, lm.shapes)
    return sum(counts)
