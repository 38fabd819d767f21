"""What KV policies cost a checkpoint: `eval/kv-<step>.json`, written by `looplm eval --kv`, read by generation."""

from looplm.metrics.stored import Measured, Stored

KIND = "kv"


class KVPolicyLoss(Stored):
    """A policy against the same text under `each` in the compute type, at the full depth, token by token."""

    policy: str
    """As `looplm generate --kv` takes it."""
    exit: str | None = None
    """The exit rule under which it was measured; None: all tokens run all loops."""
    loss: float
    """Nats per token."""
    change: float
    change_low: float
    change_high: float
    """The loss minus that under `each`: with its 95 % interval, paired, by bootstrap over documents."""
    agreement: float
    """Share of tokens whose likeliest successor is the same as under `each`."""
    mean_depth: float
    bytes_per_token: int
    """Of the cache, for every token of a text."""
    share: float
    """Of the bytes of `each` in the compute type."""


class KVLosses(Measured):
    """What was measured of a checkpoint so far."""

    num_loops: int
    """R, the full depth."""
    loss: float
    """Under `each` in the compute type, nats per token."""
    policies: list[KVPolicyLoss]

    def of(self, policy: str, exit: str | None = None) -> KVPolicyLoss | None:
        """Return what was measured of a policy, under an exit rule; None if nothing was."""
        return next((one for one in self.policies if (one.policy, one.exit) == (policy, exit)), None)
