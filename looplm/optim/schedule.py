"""Learning rate as a function of the step."""

import optax

from looplm.config.schema import Optim


def build_schedule(config: Optim, num_steps: int) -> optax.Schedule:
    """The learning rate of step 0, 1, ..., num_steps - 1.

    Linear warm-up to the peak over `warmup_steps`, of which the first already has a rate above zero: peak /
    warmup_steps. The step after it has the peak; from there the decay goes to `final_fraction` of the peak, which the
    last step has. `wsd` (warm-up, stable, decay: arXiv 2404.06395) keeps the peak until the last `wsd_fraction` of all
    steps.
    """
    peak, schedule = config.learning_rate, config.schedule
    warmup = schedule.warmup_steps
    rest = max(num_steps - 1 - warmup, 1)
    final = peak * schedule.final_fraction
    match schedule.decay:
        case "constant":
            decay = optax.constant_schedule(peak)
        case "linear":
            decay = optax.linear_schedule(peak, final, rest)
        case "cosine":
            decay = optax.cosine_decay_schedule(peak, rest, schedule.final_fraction)
        case "wsd":
            falling = min(round(schedule.wsd_fraction * num_steps), rest)
            # Holds the peak up to and including the step before the first of the last `falling` steps.
            decay = optax.join_schedules(
                [optax.constant_schedule(peak), optax.linear_schedule(peak, final, falling)], [rest - falling]
            )
    if warmup == 0:
        return decay
    return optax.join_schedules([optax.linear_schedule(peak / warmup, peak, warmup - 1 or 1), decay], [warmup])
