"""Whether the library `lm_eval` is there."""

from importlib.util import find_spec

from looplm.errors import UserError


def require_library() -> None:
    """Raise UserError unless lm-evaluation-harness can be imported."""
    if find_spec("lm_eval") is None:
        raise UserError("tasks need lm-evaluation-harness; run `pip install looplm[lm-eval]`")
