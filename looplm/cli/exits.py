"""The loops that every token of a text took, and all together, to be read."""

from collections import Counter
from collections.abc import Iterator

from looplm.data.tokenizer import Tokenizer
from looplm.infer.board import Counts
from looplm.infer.continuation import Continuation


def exit_lines(text: Continuation, tokenizer: Tokenizer, num_loops: int) -> Iterator[str]:
    """Yield a line a token, with its loops and what it stands for, and at last how many tokens left after each loop."""
    for token, loops in zip(text.tokens, text.loops, strict=True):
        yield f"{loops:5d}  {tokenizer.decode([int(token)])!r}"
    if len(text.loops):
        counts = sorted(Counter(text.loops.tolist()).items())
        after = ", ".join(f"{count} after {loops}" for loops, count in counts)
        yield f"{text.loops.mean():.2f} of {num_loops} loops a token: {after}"


def count_line(counts: Counts, num_loops: int) -> str:
    """Return e.g. `63 tokens in 148 passes through the block, 2.35 a token (8 without drafts); 49 of 60 drafts kept`.

    Passes of several rows together count once.
    """
    written, ticks, drafted, kept = map(int, (counts.written, counts.ticks, counts.drafted, counts.accepted))
    passes = f"{ticks} passes through the block, {ticks / max(written, 1):.2f} a token ({num_loops} without drafts)"
    return f"{written} tokens in {passes}; {kept} of {drafted} drafts kept"
