"""Cross-entropy of a linear head that never holds the logits of a whole batch."""

from looplm.ops.cross_entropy.api import IGNORED as IGNORED
from looplm.ops.cross_entropy.api import TokenScores as TokenScores
from looplm.ops.cross_entropy.api import linear_cross_entropy as linear_cross_entropy
