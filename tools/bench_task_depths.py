"""What likelihoods at several depths cost together, and one depth after the other, in CPU time.

    python tools/bench_task_depths.py RUN 1,2,4,8

The questions are lines of the standard library: how likely is the rest of the next line, and of another one? Every
number is the least of three, after what has to be compiled.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import looplm
from looplm.api import LoadedLM
from looplm.lm_eval.answers import Answers
from looplm.lm_eval.opening import longest_text

NUM_LINES = 200
BEGINNING = 15


def questions(salt: int) -> list[tuple[str, str]]:
    """Context and continuation; other ones for every salt."""
    text = "".join(path.read_text() for path in sorted(Path(json.__file__).parent.glob("*.py")))
    lines = [line for line in text.splitlines() if len(line) > 2 * BEGINNING][:NUM_LINES]
    pairs = []
    for number, line in enumerate(lines):
        following, other = lines[(number + 7) % len(lines)], lines[number * 3 % len(lines)]
        context = f"{line}{salt}\n{following[:BEGINNING]}"
        pairs += [(context, following[BEGINNING:]), (context, other[BEGINNING:])]
    return pairs


def seconds(model: LoadedLM, depths: Sequence[int], max_length: int) -> float:
    """CPU time of all questions at all depths."""
    answers = Answers(model, depths, max_length=max_length)
    times = []
    for salt in range(4):
        start = time.process_time()
        for depth in depths:
            answers.log_likelihoods(questions(salt), depth)
        times.append(time.process_time() - start)
    return min(times[1:])


def main() -> None:
    """Print the times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("depths")
    arguments = parser.parse_args()
    model, depths = looplm.load(arguments.run), sorted(map(int, arguments.depths.split(",")))
    length = longest_text(arguments.run, model)
    alone = {depth: seconds(model, [depth], length) for depth in depths}
    together, deepest = seconds(model, depths, length), alone[depths[-1]]
    print(f"{len(questions(0))} continuations, at most {length} tokens with their contexts")
    for depth, taken in alone.items():
        print(f"depth {depth}: {taken:.2f} s")
    print(f"one after the other: {sum(alone.values()):.2f} s, {sum(alone.values()) / deepest:.2f} of the deepest")
    print(f"together: {together:.2f} s, {together / deepest:.2f} of the deepest")


if __name__ == "__main__":
    main()
