"""Cross-entropy of a linear head that never holds the logits of a whole batch, and its divergence from another one."""

from looplm.ops.cross_entropy.api import IGNORED as IGNORED
from looplm.ops.cross_entropy.api import DistilledScores as DistilledScores
from looplm.ops.cross_entropy.api import TokenScores as TokenScores
from looplm.ops.cross_entropy.api import linear_cross_entropy as linear_cross_entropy
from looplm.ops.cross_entropy.api import linear_distillation as linear_distillation
from looplm.ops.cross_entropy.api import linear_self_distillation as linear_self_distillation
from looplm.ops.cross_entropy.head import Head as Head
