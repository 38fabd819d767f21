"""Sentences that say what the numbers of a depth sweep mean, and are allowed to say that more loops did not help.

A difference counts only when its 95 % bootstrap interval leaves out zero; one that was picked among several, only when
an interval leaves out zero that is wider by as much (Bonferroni).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

from looplm.metrics.sweep import Sweep

FEW_DOCUMENTS = 20
"""The bootstrap is over documents; with fewer than this its intervals are too narrow to be trusted."""


Tone = Literal["good", "bad", "neutral"]


@dataclass(frozen=True)
class Verdict:
    """One sentence; `tone` says whether it speaks for the loops or against them."""

    tone: Tone
    text: str


def verdicts(sweep: Sweep) -> list[Verdict]:
    """Returns the sentences, the most important first."""
    if not all(math.isfinite(row.loss) for row in sweep.rows):
        bad = ", ".join(str(row.depth) for row in sweep.rows if not math.isfinite(row.loss))
        return [Verdict("bad", f"The held-out loss is not a finite number at depth {bad}: the model is broken there.")]
    return [
        rule
        for rules in (_gain, _calibrated, _better, _enough, _beyond, _exits, _compression, _documents)
        for rule in rules(sweep)
    ]


def _gain(sweep: Sweep) -> Iterator[Verdict]:
    gain = sweep.gain
    if gain is None or gain.from_depth == gain.to_depth:
        yield Verdict("neutral", "Only one depth can be compared, so nothing can be said about the use of more loops.")
        return
    digits = decimals(gain.high - gain.low)
    nats, low, high = (f"{value:.{digits}f}" for value in (abs(gain.nats), *sorted((abs(gain.low), abs(gain.high)))))
    deep, shallow = f"depth {gain.to_depth}", f"depth {gain.from_depth}"
    change = f"the held-out loss by {nats} nats against {shallow} (95 % interval {low} to {high})."
    if gain.low > 0:
        yield Verdict("good", f"More loops help: {deep} lowers {change}")
    elif gain.high < 0:
        yield Verdict("bad", f"More loops made it worse: {deep} raises {change}")
    else:
        interval = f"{gain.low:.{digits}f} to {gain.high:.{digits}f}"
        gained = f"{deep} gains {gain.nats:.{digits}f} nats of held-out loss over {shallow}"
        yield Verdict("bad", f"More loops did not help: {gained}, and the 95 % interval {interval} includes zero.")


def _calibrated(sweep: Sweep) -> Iterator[Verdict]:
    """Says what of the gain is left when every depth is read with a temperature of its own."""
    raw, fitted = sweep.gain, sweep.calibrated.gain if sweep.calibrated else None
    if raw is None or fitted is None or fitted.from_depth == fitted.to_depth:
        return
    digits = decimals(fitted.high - fitted.low)
    nats, ends = f"{fitted.nats:.{digits}f}", f"95 % interval {fitted.low:.{digits}f} to {fitted.high:.{digits}f}"
    start = "Calibrated, with a temperature of its own for every depth,"
    if fitted.low > 0:
        yield Verdict("good", f"{start} the gain is {nats} nats ({ends}) instead of {raw.nats:.{digits}f}.")
    elif raw.low > 0:
        yield Verdict(
            "bad",
            f"{start} nothing clear is left of the gain: {nats} nats ({ends}). Shallow loops are only overconfident.",
        )
    elif fitted.high < 0:
        yield Verdict("bad", f"{start} more loops are still worse: the gain is {nats} nats ({ends}).")


def _better(sweep: Sweep) -> Iterator[Verdict]:
    """Says so when a depth below the trained one is clearly better than that, though it was picked among several."""
    trained = sweep.trained
    shallower = [row for row in sweep.rows if row.depth < sweep.trained_depth]
    if trained is None or not shallower:
        return
    best = min(shallower, key=lambda row: row.loss)
    if clearly(best.loss - trained.loss, best.change_low, best.change_high, among=len(shallower)) < 0:
        digits = decimals(best.change_high - best.change_low)
        ends = f"95 % interval {-best.change_high:.{digits}f} to {-best.change_low:.{digits}f}"
        nats = f"{trained.loss - best.loss:.{digits}f}"
        told = f"depth {best.depth} is better than the trained depth {trained.depth} by {nats} nats ({ends})"
        yield Verdict("bad", f"The last loops do harm: {told}.")


def _enough(sweep: Sweep) -> Iterator[Verdict]:
    """Says so when fewer loops than trained reach the same loss; of interest only where depth helps at all."""
    trained = sweep.trained
    if trained is None or sweep.gain is None or sweep.gain.low <= 0:
        return
    first = next(row for row in sweep.rows if row.change_low <= 0 or row.depth == trained.depth)
    if first.depth < trained.depth:
        loss = f"{first.loss:.3f} against {trained.loss:.3f} nats"
        yield Verdict(
            "neutral", f"Depth {first.depth} is already within the interval of depth {trained.depth}: {loss}."
        )


def _beyond(sweep: Sweep) -> Iterator[Verdict]:
    trained = sweep.trained
    deeper = [row for row in sweep.rows if row.depth > sweep.trained_depth]
    if trained is None or not deeper:
        return
    worst, best = max(deeper, key=lambda row: row.loss), min(deeper, key=lambda row: row.loss)
    start = f"Beyond the trained depth of {trained.depth} the loss"
    if worst.change_low > 0:
        change = f"rises from {trained.loss:.3f} to {worst.loss:.3f} nats at depth {worst.depth}"
        yield Verdict("bad", f"{start} {change}.")
    elif best.change_high < 0:
        change = f"falls from {trained.loss:.3f} to {best.loss:.3f} nats at depth {best.depth}"
        yield Verdict("good", f"{start} {change}.")
    else:
        yield Verdict("neutral", f"{start} stays within its interval up to depth {deeper[-1].depth}.")


def _exits(sweep: Sweep) -> Iterator[Verdict]:
    shares = sweep.exit_histogram
    if not shares:
        return
    at = "At the exit threshold" + (f" of {sweep.exit_threshold:g}" if sweep.exit_threshold is not None else "")
    largest = max(range(len(shares)), key=shares.__getitem__)
    if shares[largest] >= 0.99:
        share = f"{100 * shares[largest]:.1f} %"
        yield Verdict(
            "bad", f"{at} {share} of the tokens exit at loop {largest + 1}: the gate does not tell them apart."
        )
        return
    mean = sum(loop * share for loop, share in enumerate(shares, start=1)) / sum(shares)
    text = f"{at} a token takes {mean:.2f} of {len(shares)} loops on average"
    if sweep.exit_loss is not None and sweep.trained is not None:
        text += f", at a loss of {sweep.exit_loss:.3f} nats against {sweep.trained.loss:.3f} of full depth"
    yield Verdict("neutral", f"{text}.")


def _compression(sweep: Sweep) -> Iterator[Verdict]:
    trained, xz = sweep.trained, sweep.xz_bits_per_byte
    if trained is None or trained.bits_per_byte is None or not xz:
        return
    numbers = f"{trained.bits_per_byte:.3f} bits per byte at depth {trained.depth} against {xz:.3f}"
    if trained.bits_per_byte < xz:
        saved = f"{1 - trained.bits_per_byte / xz:.0%}".replace("%", " %")
        yield Verdict(
            "good", f"The model spends {saved} fewer bits than the file compressor xz -9 on the same text: {numbers}."
        )
    else:
        yield Verdict("bad", f"The model does not beat the file compressor xz -9 on the same text: {numbers}.")


def _documents(sweep: Sweep) -> Iterator[Verdict]:
    if sweep.num_documents < FEW_DOCUMENTS:
        count = "one document" if sweep.num_documents == 1 else f"{sweep.num_documents} documents"
        yield Verdict("neutral", f"The held-out data hold only {count}, so the intervals are rough.")


def clearly(value: float, low: float, high: float, *, among: int = 1) -> int:
    """Return the sign of a difference that is clear though it was picked among so many, and 0 for any other.

    low, high: its 95 % interval, taken as one of a normal distribution to widen it.
    """
    error = (high - low) / (2 * NormalDist().inv_cdf(0.975))
    reach = NormalDist().inv_cdf(1 - 0.025 / among) * error
    return int(value > reach) - int(value < -reach)


def decimals(width: float) -> int:
    """Decimals that show the ends of an interval as different numbers."""
    return min(6, max(2, math.ceil(0.5 - math.log10(width)))) if 0 < width < math.inf else 3
