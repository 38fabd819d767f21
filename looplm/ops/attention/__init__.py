"""Scaled dot-product attention over grouped heads, and its masks."""

from looplm.ops.attention.api import attention as attention
from looplm.ops.attention.api import prepare as prepare
from looplm.ops.attention.cached import cached_attention as cached_attention
from looplm.ops.attention.choice import Choice as Choice
from looplm.ops.attention.choice import choose as choose
from looplm.ops.attention.choice import choose_for as choose_for
from looplm.ops.attention.mask import Asked as Asked
from looplm.ops.attention.mask import Mask as Mask
from looplm.ops.attention.mask import cached_mask as cached_mask
from looplm.ops.attention.mask import self_mask as self_mask
from looplm.ops.attention.prefix import prefix_of as prefix_of
from looplm.ops.attention.residuals import kept as kept
