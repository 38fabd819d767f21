"""Which checkpoints stay."""

from collections.abc import Mapping

from looplm.config.schema import Checkpoint


def to_remove(
    saved: Mapping[int, Mapping[str, float]], config: Checkpoint, metric: str, protected: int | None
) -> list[int]:
    """Steps that may go, oldest first.

    The newest `keep_last`, every multiple of `keep_every` and the `keep_best` lowest in `metric` stay, and so does
    `protected`: the last one that was read back and found right.

    Args:
        saved: evaluation metrics of every sealed checkpoint by step.
    """
    steps = sorted(saved)
    kept = set(steps[-config.keep_last :]) | {protected}
    if config.keep_every is not None:
        kept |= {step for step in steps if step % config.keep_every == 0}
    scored = [step for step in steps if metric in saved[step]]
    kept |= set(sorted(scored, key=lambda step: (saved[step][metric], -step))[: config.keep_best])
    return [step for step in steps if step not in kept]
