"""Matrix products of rows with the matrix of the group that they belong to: what the experts of a layer are."""

from looplm.ops.grouped_matmul.api import BACKENDS as BACKENDS
from looplm.ops.grouped_matmul.api import Backend as Backend
from looplm.ops.grouped_matmul.api import check_backend as check_backend
from looplm.ops.grouped_matmul.api import grouped_matmul as grouped_matmul
