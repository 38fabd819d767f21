"""Exit rules against mean depth: `eval/exits-<step>.json`, written by `looplm eval --exit`."""

from looplm.metrics.stored import Measured, Stored

KIND = "exits"


class Controls(Stored):
    """Losses at the mean depth of a point, in nats per token, without its rule."""

    fixed: float
    """All tokens at one depth: the straight line between the two whole depths beside the mean."""
    random: float
    """The same share of tokens leaves after every loop, whichever they are."""
    shuffled: float
    """The same exits, exchanged among the tokens of every document: what the rule knows of documents is left."""
    oracle: float
    """The exits that make the loss least at this mean depth, chosen with the labels in sight."""


class ExitPoint(Stored):
    """A rule at one threshold. Losses are in nats per token; intervals are 95 %, by bootstrap over documents."""

    rule: str
    """As `looplm generate --exit` takes it."""
    mean_depth: float
    histogram: list[float]
    """Share of tokens that leave after loop 1, 2, ... R."""
    depth_p50: int
    depth_p90: int
    depth_p99: int
    """So many loops are enough for this share of the tokens."""
    loss: float
    excess: float
    excess_low: float
    excess_high: float
    """The loss minus that of the full depth, paired."""
    accuracy: float
    disagreement: float
    """Share of tokens whose likeliest successor is another one than at the full depth."""
    controls: Controls
    gain: float
    gain_low: float
    gain_high: float
    """The loss of `controls.random` minus this one, paired: what it is worth to know which tokens leave."""
    solved: float | None = None
    """Of a task: share of examples whose answers are all right."""


class Safe(Stored):
    """The loosest threshold of a rule whose excess loss is at most `tolerance` with the stated confidence."""

    tolerance: float
    """Nats per token."""
    confidence: float
    rule: str
    """As `looplm generate --exit` takes it."""
    mean_depth: float
    excess_upper: float
    """Upper bound of the excess loss: one-sided, by bootstrap over documents."""
    disagreement_upper: float
    """Upper bound of the mean over documents of `disagreement`: Hoeffding-Bentkus, for any number of documents."""


class RuleSweep(Stored):
    """A rule over its thresholds, deepest first."""

    name: str
    """`gate`, `latent`, ...; or a whole rule that was given with its threshold."""
    points: list[ExitPoint]
    safe: list[Safe]
    """Of every tolerance at which a threshold passes."""


class OraclePoint(Stored):
    mean_depth: float
    loss: float


class ExitSweep(Measured):
    """All rules, from one pass. Every token runs all loops there, and the exit selects what is read of it
    (`--kv each`). Where keys of loops that did not run are missing (`--kv ragged`) the loss may differ; see `KVLosses`.
    """

    num_loops: int
    """R, the full depth."""
    full_loss: float
    full_accuracy: float
    loss: list[float]
    """Of all tokens at depth 1, 2, ... R."""
    rules: list[RuleSweep]
    oracle: list[OraclePoint]
    """The least loss at a mean depth, chosen with the labels in sight: shallow first."""
