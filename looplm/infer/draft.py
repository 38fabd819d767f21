"""The text form of drafts, as the command line and `lm.generate` take it."""

from looplm.errors import UserError
from looplm.infer.schedule.draft import DraftAndVerify
from looplm.infer.schedule.wavefront import Wavefront


def parse_draft(text: str | int | None, num_loops: int) -> DraftAndVerify | Wavefront | None:
    """Read how a model drafts for itself; the text stays the same.

        D      every token is drafted from after D loops, while it runs the others (wavefront)
        D:K    K tokens in a row are drafted after D loops each, then run the others in one pass

    None stays None. Raises UserError for anything else, or unless 1 <= D < num_loops.
    """
    if text is None:
        return None
    loops, colon, tokens = str(text).partition(":")
    if not loops.isdecimal() or (colon and not (tokens.isdecimal() and int(tokens))):
        raise UserError(f"draft {text!r} is not known; use D, or D:K with K of at least 1, e.g. 1 or 1:4")
    if not 1 <= int(loops) < num_loops:
        raise UserError(f"draft {text!r}: drafts after {loops} loops need more loops than {num_loops}; use --loops")
    return DraftAndVerify(int(loops), int(tokens)) if colon else Wavefront(int(loops))
