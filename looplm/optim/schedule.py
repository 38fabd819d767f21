"""Learning rate as a function of the step."""

import optax

from looplm.config.schema import Optim


def build_schedule(config: Optim, num_steps: int) -> optax.Schedule:
    """Linear warm-up to the peak over `warmup_steps`, then the decay to `final_fraction` of it at the last step.

    The first step already has a rate above zero: peak / warmup_steps.
    """
    peak, schedule = config.learning_rate, config.schedule
    warmup, rest = schedule.warmup_steps, max(num_steps - schedule.warmup_steps, 1)
    final = peak * schedule.final_fraction
    decay = {
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, final, rest),
        "cosine": optax.cosine_decay_schedule(peak, rest, schedule.final_fraction),
    }[schedule.decay]
    if warmup == 0:
        return decay
    return optax.join_schedules([optax.linear_schedule(peak / warmup, peak, warmup - 1 or 1), decay], [warmup])
