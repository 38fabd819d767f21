"""Every answer of every task against a solver that shares nothing with it; examples are functions of their number."""

import itertools
from collections.abc import Iterator

import numpy as np
import pytest

from looplm.config.schema import Addition, AnyTask, Chains, Facts, Graphs, Maze, Modular, PHop, Sudoku
from looplm.data.synthetic import TaskWindows, build_task
from looplm.data.synthetic.addition import EQUALS, PLUS
from looplm.data.synthetic.graphs import ANSWER, BEGIN, END, LATENT, MARKS, QUESTION, STOP
from looplm.data.synthetic.maze import GOAL, OPEN, PATH, SEPARATOR, START, WALL
from looplm.errors import UserError

NO = -100
TASKS = [
    PHop(hops=2, length=20),
    Addition(digits=3),
    Modular(operations=5),
    Facts(entities=30, relations=8, out_degree=5, held_out_fraction=0.2, composed_per_fact=2),
    Chains(entities=12, relations=3, max_hops=5, train_queries=50, held_out_queries=20),
    Graphs(things=7, max_facts=9, min_path=2, max_path=3, stage=1),
    Sudoku(size=4, num_puzzles=5),
    Maze(size=7, min_path=3),
]


def read(config: AnyTask, count: int, first: int = 0) -> Iterator[tuple[list[int], list[int]]]:
    """Tokens and labels of examples, cut to their lengths."""
    examples = build_task(config).examples(np.arange(first, first + count))
    assert examples.tokens_NL.dtype == examples.labels_NL.dtype == np.int32
    for tokens, labels, length in zip(*(x.tolist() for x in examples), strict=True):
        yield tokens[:length], labels[:length]


@pytest.mark.parametrize("config", [Addition(digits=4), Addition(digits=2, operands=13, reverse=True)])
def test_sums_are_those_of_python(config: Addition) -> None:
    def number(digits: list[int]) -> int:
        return int("".join(map(str, digits[::-1] if config.reverse else digits)))

    for tokens, labels in read(config, 200):
        start = tokens.index(EQUALS)
        question, answer = tokens[:start], labels[start:]
        parts = [list(group) for sign, group in itertools.groupby(question, lambda t: t == PLUS) if not sign]
        assert [len(part) for part in parts] == [config.digits] * config.operands
        assert number(answer) == sum(map(number, parts))
        assert set(labels[:start]) == {NO}
        assert tokens[start + 1 :] == answer[:-1]
    assert max(number(labels[tokens.index(EQUALS) :]) for tokens, labels in read(config, 200)) > 10**config.digits


def test_expressions_are_valued_by_recursion() -> None:
    config, lengths = Modular(operations=6, modulus=11), []

    def value(tokens: Iterator[int]) -> int:
        token = next(tokens)
        if token < 11:
            return token
        left, right = value(tokens), value(tokens)
        return (left + right, left - right, left * right)[token - 11] % 11

    for tokens, labels in read(config, 300):
        mark = 11 + 3
        operations, rest = tokens[0] - mark, iter(tokens[1:])
        answer = value(rest)
        assert list(rest) == [mark]  # the whole expression was read
        assert labels == [NO] * (len(tokens) - 1) + [answer]
        assert sum(11 <= token < mark for token in tokens) == operations
        lengths.append(operations)
    assert set(lengths) == set(range(1, 7))
    # One operation in two places of a tree of two: the left and the right child are as likely.
    shapes = [tokens[2] >= 11 for tokens, _ in read(Modular(operations=2, modulus=11), 2000) if len(tokens) == 7]
    assert 0.45 < np.mean(shapes) < 0.55


def test_facts_and_their_compositions() -> None:
    config = TASKS[3]
    E, F = 30, 150
    parts = {part: list(read(config.model_copy(update={"part": part}), count)) for part, count in PARTS.items()}
    facts = {(h, r): labels[1] for (h, r), labels in parts["train"][:F]}
    assert len(facts) == F
    assert all(labels[0] == NO for _, labels in parts["train"])
    assert all(sum(head == h for head, _ in facts) == 5 for h in range(E))
    composed = {part: {tuple(tokens) for tokens, _ in rows if len(tokens) == 3} for part, rows in parts.items()}
    for rows in parts.values():
        for tokens, labels in rows:
            if len(tokens) == 3:
                h, first, second = tokens
                assert labels == [NO, NO, facts[facts[h, first], second]]
                assert h < E <= min(first, second)
    # A fact is composed in training, or held out, and never both.
    used = {
        part: {fact for h, first, second in rows for fact in ((h, first), (facts[h, first], second))}
        for part, rows in composed.items()
    }
    assert not used["systematic"] & (used["train"] | used["unseen"])
    assert not composed["unseen"] & composed["train"]
    assert len(composed["train"]) == 2 * 120
    assert len(composed["systematic"]) == PARTS["systematic"]


PARTS = {"train": 150 + 240, "unseen": 100, "systematic": 20}


def test_chains_are_followed_relation_by_relation() -> None:
    config = TASKS[4]
    train, unseen = (list(read(config.model_copy(update={"part": part}), n)) for part, n in CHAINS.items())
    step = {(h, r): labels[1] for tokens, labels in train if len(tokens) == 2 for h, r in [tokens]}
    assert len(step) == 12 * 3
    for r in range(12, 15):
        assert sorted(step[h, r] for h in range(12)) == list(range(12))
    for tokens, labels in train + unseen:
        at = tokens[0]
        for relation in tokens[1:]:
            at = step[at, relation]
        assert labels == [NO] * (len(tokens) - 1) + [at]
    assert [sum(len(tokens) == hops + 1 for tokens, _ in train) for hops in range(1, 6)] == [36, 50, 50, 50, 50]
    seen = {tuple(tokens) for tokens, _ in train}
    assert len(seen) == len(train)
    assert not seen & {tuple(tokens) for tokens, _ in unseen}
    # Where there are more chains than numbers.
    long = Chains(entities=200, relations=10, min_hops=39, max_hops=40, train_queries=5)
    facts = build_task(Chains(entities=200, relations=10, max_hops=1)).examples(np.arange(2000))
    step = {(h, r): label for (h, r, *_), (_, label, *_) in zip(*(x.tolist() for x in facts[:2]), strict=True)}
    for tokens, labels in read(long, 10):
        at = tokens[0]
        for relation in tokens[1:]:
            at = step[at, relation]
        assert labels[-1] == at


CHAINS = {"train": 36 + 4 * 50, "unseen": 4 * 20}


def all_grids(puzzle: list[int], size: int, rows: int, columns: int) -> Iterator[list[int]]:
    """Every completion of a puzzle, cell after cell, each digit tried and checked against the rules."""
    if 0 not in puzzle:
        yield puzzle
        return
    cell = puzzle.index(0)
    y, x = divmod(cell, size)
    for digit in range(1, size + 1):
        block = [
            (y // rows * rows + v) * size + x // columns * columns + u for v in range(rows) for u in range(columns)
        ]
        peers = [y * size + u for u in range(size)] + [v * size + x for v in range(size)] + block
        if digit not in [puzzle[peer] for peer in peers]:
            yield from all_grids([*puzzle[:cell], digit, *puzzle[cell + 1 :]], size, rows, columns)


@pytest.mark.parametrize(
    ("config", "block"),
    [
        (Sudoku(size=4, num_puzzles=30), (2, 2)),
        (Sudoku(size=6, num_puzzles=3, in_place=True), (2, 3)),
        (Sudoku(size=9, num_puzzles=2, clues=36), (3, 3)),
    ],
)
def test_puzzles_have_one_solution_and_it_is_the_answer(config: Sudoku, block: tuple[int, int]) -> None:
    size, cells = config.size, config.size**2
    puzzles = set()
    for tokens, labels in read(config, 2 * config.num_puzzles):
        puzzle = tokens[:cells]
        (solution,) = all_grids(puzzle, size, *block)
        asked = [digit if not clue else NO for clue, digit in zip(puzzle, solution, strict=True)]
        if config.in_place:
            assert labels == asked
        else:
            assert tokens == [*puzzle, size + 1, *solution[:-1]]
            assert labels == [NO] * cells + asked
        puzzles.add(tuple(puzzle))
        if config.clues:
            assert cells - puzzle.count(0) == config.clues
    assert len(puzzles) > config.num_puzzles  # exchanged, not repeated


def test_no_clue_of_a_puzzle_can_go() -> None:
    for tokens, _ in read(Sudoku(size=4, num_puzzles=10), 10):
        puzzle = tokens[:16]
        for cell in np.flatnonzero(puzzle).tolist():
            assert len(list(itertools.islice(all_grids([*puzzle[:cell], 0, *puzzle[cell + 1 :]], 4, 2, 2), 2))) == 2


def paths(maze: np.ndarray, at: tuple[int, int], seen: tuple[tuple[int, int], ...]) -> Iterator[tuple]:
    """Every way from a cell to G that visits none twice."""
    if maze[at] == GOAL:
        yield (*seen, at)
        return
    for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0)):
        to = at[0] + dy, at[1] + dx
        if maze[to] != WALL and to not in seen:
            yield from paths(maze, to, (*seen, at))


def written(tokens: list[int], labels: list[int]) -> tuple[set, list[int], list, list[int]]:
    """Takes an example apart: facts, (X and the two that are asked about), steps and latents."""
    whole = [*tokens, labels[-1]]
    question, begin, end = (whole.index(mark) for mark in (QUESTION, BEGIN, END))
    facts = [tuple(whole[at : at + 2]) for at in range(0, question, 3)]
    assert whole[2:question:3] == [STOP] * len(facts)
    assert len(set(facts)) == len(facts)
    assert labels[:end] == [NO] * end, "nothing is asked of question and latents"
    assert labels[end:] == whole[end + 1 :], "all of the rest is"
    assert whole[-2] == ANSWER
    steps = [tuple(whole[at : at + 2]) for at in range(end + 1, len(whole) - 2, 3)]
    return set(facts), whole[question + 1 : begin], steps, whole[begin + 1 : end]


def below_in(facts: set, top: int) -> dict[int, int]:
    """Steps to everything below `top`, level by level."""
    found, level = {top: 0}, {top}
    while level:
        level = {b for a, b in facts if a in level} - set(found)
        found |= dict.fromkeys(level, max(found.values()) + 1)
    return found


def test_graphs_are_followed_in_steps_of_which_the_first_become_latents() -> None:
    config, lengths, firsts = Graphs(things=12, max_facts=20, min_path=2, max_path=4), [], []
    stages = [list(read(config.model_copy(update={"stage": stage, "latents_per_step": 2}), 60)) for stage in (0, 3, 4)]
    for plain, some, all_ in zip(*stages, strict=True):
        facts, (x, *asked), steps, latents = written(*plain)
        answer, (wrong,) = plain[1][-1], [other for other in asked if other != plain[1][-1]]
        distance = below_in(facts, x)
        assert latents == []
        assert 2 <= distance[answer] == len(steps) <= 4, "the steps are a shortest way"
        assert set(steps) <= facts
        assert [x, *(b for _, b in steps)] == [*(a for a, _ in steps), answer]
        assert wrong not in distance
        assert not {answer, wrong} & {a for a, _ in facts}, "both are leaves"
        assert min(min(fact) for fact in facts) >= MARKS
        for (tokens, labels), stage in ((some, 3), (all_, 4)):
            assert written(tokens, labels) == (
                facts, [x, *asked], steps[stage:], [LATENT] * 2 * min(stage, len(steps))
            )  # fmt: skip
            assert labels[-1] == answer
        lengths.append(len(steps))
        firsts.append(asked[0] == answer)
    assert set(lengths) == {2, 3, 4}
    assert 0.3 < np.mean(firsts) < 0.7, "the place says nothing of the answer"
    padded = config.model_copy(update={"stage": 4, "pad_latents": True})
    assert {len(written(*example)[3]) for example in read(padded, 20)} == {4}


@pytest.mark.parametrize(
    "config", [Maze(size=9), Maze(size=12, min_path=20, max_path=24), Maze(size=7, min_path=3, in_place=True)]
)
def test_mazes_have_one_path_and_it_is_the_answer(config: Maze) -> None:
    cells = config.size**2
    for tokens, labels in read(config, 40):
        maze = np.array(tokens[:cells]).reshape(config.size, config.size)
        assert (maze == START).sum() == (maze == GOAL).sum() == 1
        assert (maze[[0, -1]] == WALL).all()
        assert (maze[:, [0, -1]] == WALL).all()
        (path,) = paths(maze, tuple(np.argwhere(maze == START)[0].tolist()), ())
        assert config.min_path <= len(path) - 1 <= config.max_path
        solved = maze.copy()
        for cell in path[1:-1]:
            solved[cell] = PATH
        asked = np.where(maze == OPEN, solved, NO).reshape(-1).tolist()
        if config.in_place:
            assert labels == asked
        else:
            assert tokens[cells:] == [SEPARATOR, *solved.reshape(-1).tolist()[:-1]]
            assert labels == [NO] * cells + asked


@pytest.mark.parametrize("config", TASKS, ids=lambda config: config.kind)
def test_examples_are_functions_of_seed_and_number(config: AnyTask) -> None:
    task = build_task(config)
    numbers = np.random.default_rng(0).permutation(min(task.num_examples, 40))
    together, again = task.examples(numbers), build_task(config).examples(numbers)
    for n, number in enumerate(numbers.tolist()):
        length = together.lengths_N[n]
        alone = task.examples(np.array([number]))
        for found, other, one in zip(together[:2], again[:2], alone[:2], strict=True):
            np.testing.assert_array_equal(found[n, :length], one[0, :length])
            np.testing.assert_array_equal(found[n, :length], other[n, :length])
    other = build_task(config.model_copy(update={"seed": config.seed + 1})).examples(numbers)
    assert (other.tokens_NL != together.tokens_NL).any()


@pytest.mark.parametrize("config", TASKS, ids=lambda config: config.kind)
def test_windows_hold_every_example_once(config: AnyTask) -> None:
    if hasattr(config, "num_examples"):
        config = config.model_copy(update={"num_examples": 53})
    task = build_task(config)
    windows = TaskWindows(task, 3 * task.length + 2, with_documents=True)
    batch = windows.read(np.arange(len(windows) + 1))
    want = {(tuple(tokens), tuple(labels)) for tokens, labels in read(config, task.num_examples)}
    found = []
    for row, segments in enumerate(batch["segments"]):
        for segment in range(1, segments.max() + 1):
            here = segments == segment
            assert batch["positions"][row][here].tolist() == list(range(here.sum()))
            assert len(set(batch["documents"][row][here].tolist())) == 1
            if here.any():
                found.append((tuple(batch["tokens"][row][here].tolist()), tuple(batch["labels"][row][here].tolist())))
    assert len(found) == task.num_examples
    assert set(found) == want
    padded = batch["segments"] == 0
    for name, value in (("tokens", 0), ("labels", NO), ("positions", 0), ("documents", -1)):
        assert (batch[name][padded] == value).all()
    assert batch["tokens"].max() < task.vocab_size
    # Lengths of the random tasks are known by their mean only.
    assert windows.padding == pytest.approx(padded[:-1].mean(), abs=0.1 if config.kind == "modular" else 1e-9)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Facts(relations=3, out_degree=4), "out_degree=4 is more than relations=3; use at most that"),
        (
            Facts(entities=10, relations=5, out_degree=3, composed_per_fact=50, part="unseen"),
            "facts with part=unseen have no composition left of",
        ),
        (Chains(max_hops=1, part="unseen"), "chains of one hop are all trained"),
        (
            Chains(entities=5, relations=2, max_hops=2, held_out_queries=20),
            "there are 20 chains of 2 hops, and",
        ),
        (Maze(size=5, min_path=30), "no maze of size=5 with a path of min_path=30 to max_path=40"),
        (PHop(hops=8, length=32), "length=32 is too short"),
        (Graphs(things=6, min_path=6), "no graph of things=6 and max_facts=45 with a way of min_path=6 to max_path=6"),
    ],
)
def test_a_size_without_a_task_is_refused(config: AnyTask, message: str) -> None:
    with pytest.raises(UserError) as error:
        build_task(config)
    assert str(error.value).startswith(message)


def test_a_window_that_is_too_short_is_refused() -> None:
    with pytest.raises(UserError, match=r"data\.sequence_length=13 is too short .* up to 14 tokens"):
        TaskWindows(build_task(Addition()), 13)


def test_values_never_change() -> None:
    # A checkpoint continues on the same data in any later version: these numbers are part of the format.
    first = {config.kind: build_task(config).examples(np.array([7])).tokens_NL[0].tolist() for config in TASKS}
    assert first == FIRST


MAZE = "0000000031101000010100101010010201001111100000000" + "5000000003440100004010010401001020100111110000000"
FIRST: dict[str, list[int]] = {
    "p_hop": [0, 3, 1, 2, 1, 1, 1, 0, 0, 3, 1, 0, 0, 2, 3, 1, 3, 2, 0, 2],
    "addition": [7, 1, 7, 10, 2, 2, 3, 11, 0, 9, 4],
    "modular": [27, 23, 15, 17, 26, 9, 4, 13, 15, 19, 17, 16, 0],
    "facts": [1, 34, 25],
    "chains": [5, 13, 10, 0, 0, 0],
    "graphs": [11, 12, 0, 11, 8, 0, 12, 7, 0, 9, 10, 0, 6, 8, 0, 12, 6, 0, 11, 6, 0, 1, 11, 7, 10, 2, 3, 4, 12, 7, 0, 5,
               7, 0, 0, 0, 0, 0, 0, 0, 0],
    "sudoku": [0, 0, 0, 1, 0, 0, 4, 2, 3, 0, 0, 0, 0, 4, 0, 0, 5, 4, 2, 3, 1, 1, 3, 4, 2, 3, 1, 2, 4, 2, 4, 1],
    "maze": list(map(int, MAZE)),
}  # fmt: skip
