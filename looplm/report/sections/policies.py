"""What the policies of the key-value cache cost this checkpoint."""

from matplotlib.figure import Figure

from looplm.metrics.kv_loss import KVLosses, KVPolicyLoss
from looplm.report import pieces
from looplm.report.colours import BAD, GOOD, SOFT
from looplm.report.found import Found
from looplm.report.picture import HEIGHT, Hints, picture

MEASURE = "`looplm eval WORKDIR --kv POLICY` measures what a smaller cache costs"
ROW = 22
"""Units of a drawing for a policy."""


def policies(found: Found) -> str:
    """Return the section."""
    losses = found.kv
    if losses is None or not losses.policies:
        return pieces.section("Key-value caches", pieces.paragraph(f"{MEASURE}.", "soft"))
    told = (
        f"Step {losses.step:,}, {losses.num_tokens:,} tokens, full depth {losses.num_loops}. Losses are compared with "
    )
    told += "those of one cache per loop (`each`) in the compute type, token by token."
    shown = pieces.pair(_picture(losses), _table(losses))
    return pieces.section("Key-value caches", pieces.paragraph(told, "soft"), shown)


def name_of(policy: KVPolicyLoss) -> str:
    """Return how a policy is asked for, with the exits under which it was measured."""
    return policy.policy + (f" with {policy.exit}" if policy.exit else "")


def _picture(losses: KVLosses) -> str:
    shown = list(reversed(losses.policies))

    def draw(figure: Figure, hints: Hints) -> None:
        axes = figure.subplots()
        axes.axvline(0.0, color=SOFT, linewidth=0.9)
        for place, one in enumerate(shown):
            colour = GOOD if one.change_high < 0 else BAD if one.change_low > 0 else SOFT
            axes.plot([one.change_low, one.change_high], [place, place], color=colour, linewidth=2.0)
            (dot,) = axes.plot(one.change, place, "o", color=colour)
            hints.add(dot, [f"{name_of(one)}: {one.change:+.4f} nats, {100 * one.share:.0f} % of the bytes"])
        axes.set_yticks(range(len(shown)), [name_of(one) for one in shown])
        axes.set_ylim(-0.6, len(shown) - 0.4)
        axes.grid(visible=False, axis="y")
        axes.locator_params(axis="x", nbins=5)
        axes.set_xlabel("change of the loss (nats per token)")

    values = "; ".join(f"{name_of(one)} {one.change:+.4f}" for one in losses.policies)
    alt = f"Change of the loss in nats by cache policy, with 95 % intervals: {values}."
    told = "Red is clearly worse than one cache per loop, green clearly better, grey neither. Intervals: 95 %, paired."
    height = max(HEIGHT, 70 + ROW * len(shown))
    return pieces.figure(picture(draw, alt, height=height), "What a smaller cache costs", told)


def _table(losses: KVLosses) -> str:
    rows: list[list[str | pieces.Cell]] = [
        [
            name_of(one),
            f"{one.bytes_per_token:,}",
            pieces.percent(one.share, 0),
            pieces.number(one.loss, 4),
            *pieces.change(one.change, one.change_low, one.change_high),
            pieces.percent(one.agreement, 2),
            pieces.number(one.mean_depth, 2),
        ]
        for one in losses.policies
    ]
    headers = ("policy", "bytes/token", "of each", "loss", "change", "95 % interval", "same token", "mean depth")
    return pieces.table(headers, rows, kind="named")
