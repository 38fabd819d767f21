"""Tasks of ARC as records: read from files as they are published, augmented, turned back, voted on."""

import json
from pathlib import Path

import numpy as np
import pytest

from looplm.config.schema import Records
from looplm.data.grids.arc import read_tasks
from looplm.data.grids.augmentation import SYMMETRIES, Augmentation, drawn, turned, turned_back
from looplm.data.grids.encoding import decode, encode
from looplm.data.grids.tasks import write_tasks
from looplm.data.grids.votes import attempts, share_solved, vote
from looplm.data.records.windows import RecordWindows
from looplm.errors import UserError

RNG = np.random.default_rng(0)


def grid(height: int, width: int) -> list[list[int]]:
    return RNG.integers(0, 10, (height, width)).tolist()


def pair(*shape: int) -> dict:
    return {"input": grid(*shape), "output": grid(shape[1], shape[0])}


TRAIN = {f"train{n}": {"train": [pair(3, 4), pair(2, 20)], "test": [pair(5, 5)]} for n in range(3)}
TEST = {
    f"eval{n}": {"train": [pair(3, 2), pair(1, 1), pair(30, 30)], "test": [pair(4, 6), pair(2, 2)]} for n in range(2)
}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """The tasks in one file with the answers beside it, and one task a file."""
    asked = {
        name: {"train": task["train"], "test": [{"input": each["input"]} for each in task["test"]]}
        for name, task in TEST.items()
    }
    answers = {name: [each["output"] for each in task["test"]] for name, task in TEST.items()}
    for name, value in (("challenges", asked), ("solutions", answers)):
        (tmp_path / f"arc_eval_{name}.json").write_text(json.dumps(value))
    (tmp_path / "tasks").mkdir()
    for name, task in TRAIN.items():
        (tmp_path / "tasks" / f"{name}.json").write_text(json.dumps(task))
    return {"train": tmp_path / "tasks", "test": tmp_path / "arc_eval_challenges.json"}


def test_tasks_are_those_of_the_files(files: dict[str, Path]) -> None:
    for part, want in (("train", TRAIN), ("test", TEST)):
        assert {name: task.to_json() for name, task in read_tasks([files[part]]).items()} == want
    (files["test"].parent / "arc_eval_solutions.json").unlink()
    unanswered = read_tasks([files["test"]])["eval0"].to_json()
    assert unanswered == TEST["eval0"] | {"test": [{"input": each["input"]} for each in TEST["eval0"]["test"]]}


def test_symmetries_are_those_of_numpy() -> None:
    grids = RNG.integers(0, 10, (3, 4))
    known = [
        grids, np.rot90(grids), np.rot90(grids, 2), np.rot90(grids, 3), np.fliplr(grids), np.flipud(grids), grids.T,
        np.fliplr(np.rot90(grids)),
    ]  # fmt: skip
    for kind, want in zip(SYMMETRIES, known, strict=True):
        np.testing.assert_array_equal(turned(grids, kind), want)
        np.testing.assert_array_equal(turned_back(turned(grids, kind), kind), grids)


def test_the_way_back_of_every_augmentation_is_the_way_back() -> None:
    made = drawn(200, np.random.default_rng(1))
    assert {each.symmetry for each in made} == set(range(8))
    for each in made:
        one = RNG.integers(0, 10, RNG.integers(1, 31, 2)).astype(np.uint8)
        np.testing.assert_array_equal(each.undo(each.apply(one)), one)
        assert (each.apply(one) == 0).sum() == (one == 0).sum()
        assert Augmentation.parse(each.name("a1b2")) == ("a1b2", each)
    assert Augmentation.parse("a1b2")[1].apply(one).tolist() == one.tolist()
    # As HRM's programs write it: a quarter to the left, colour 1 becomes 3 and 3 becomes 1.
    task, named = Augmentation.parse("task|||t1|||0321456789")
    assert (task, named.apply(np.array([[1, 2], [3, 0]])).tolist()) == ("task", [[2, 0], [3, 1]])


def test_grids_on_a_canvas_are_closed_by_a_border() -> None:
    # 2x2 in a canvas of 4 at (1, 1), worked by hand: colours + 2, END below and to the right, no corner.
    tokens = encode(np.array([[0, 9], [1, 2]], np.uint8), 4, (1, 1)).reshape(4, 4)
    assert tokens.tolist() == [[0, 0, 0, 0], [0, 2, 11, 1], [0, 3, 4, 1], [0, 1, 1, 0]]
    for shape in ((1, 1), (30, 30), (30, 2), (7, 30), (3, 5)):
        one = RNG.integers(0, 10, shape).astype(np.uint8)
        np.testing.assert_array_equal(decode(encode(one)), one)
    # What a model writes may be no grid: the largest rectangle of colours from the corner is taken.
    ragged = np.array([[5, 5, 5, 1], [5, 5, 1, 5], [5, 5, 0, 0], [1, 1, 1, 9]])
    assert decode(ragged.reshape(-1)).tolist() == [[3, 3]] * 3
    assert decode(np.zeros(16, int)).shape == (0, 0)


@pytest.fixture
def folder(files: dict[str, Path], tmp_path: Path) -> Path:
    out = tmp_path / "out"
    write_tasks(out, read_tasks([files["train"]]), read_tasks([files["test"]]), augment=6, seed=0)
    return out


def read(folder: Path, part: str) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """The name of every example's puzzle, and its tokens and labels, (30, 30)."""
    windows = RecordWindows(Records(folder=str(folder), part=part), 900)
    names = json.loads((folder / "identifiers.json").read_text())
    batch = windows.read(np.arange(len(windows)))
    assert (windows.vocab_size, windows.num_ids) == (12, len(names))
    labels = np.maximum(batch["labels"], 0)
    rows = zip(batch["ids"].tolist(), batch["tokens"].reshape(-1, 30, 30), labels.reshape(-1, 30, 30), strict=True)
    return [(names[id], tokens, label) for id, tokens, label in rows]


def moved(tokens: np.ndarray) -> tuple[tuple[int, int], np.ndarray]:
    """Where a grid lies, and its colours."""
    y, x = np.nonzero(tokens > 1)
    return (y.min(), x.min()), tokens[y.min() : y.max() + 1, x.min() : x.max() + 1] - 2


def test_a_folder_holds_the_tasks_and_no_answer_to_what_is_asked(folder: Path) -> None:
    train, test = read(folder, "train"), read(folder, "test")
    puzzles = {name for name, *_ in train}
    assert len(puzzles) == 5 * 7
    assert {name for name, *_ in test} == {name for name in puzzles if name.startswith("eval")}
    want = {name: task["train"] + (task["test"] if name in TRAIN else []) for name, task in (TRAIN | TEST).items()}
    found: dict[str, list] = {}
    places: dict[str, list] = {}
    for name, tokens, label in train:
        task, done = Augmentation.parse(name)
        (place, one), (other, answer) = moved(tokens), moved(label)
        assert place == other
        places.setdefault(name, []).append(place)
        found.setdefault(name, []).append({"input": done.undo(one).tolist(), "output": done.undo(answer).tolist()})
    assert all(found[name] == want[Augmentation.parse(name)[0]] for name in puzzles)
    assert all((0, 0) in each for each in places.values())
    assert len({place for each in places.values() for place in each}) > 20
    for name, tokens, label in test:
        task, done = Augmentation.parse(name)
        asked = {"input": done.undo(decode(tokens.reshape(-1))), "output": done.undo(decode(label.reshape(-1)))}
        assert {key: value.tolist() for key, value in asked.items()} in TEST[task]["test"]
    assert len(test) == 2 * 2 * 7
    assert json.loads((folder / "test_puzzles.json").read_text()) == TEST


def test_augmentations_are_all_different(tmp_path: Path) -> None:
    # Two colours and a grid that looks alike from all sides: 9 * 8 ways to colour it, whatever is done to it.
    (tmp_path / "one.json").write_text(
        json.dumps({"train": [{"input": [[1]], "output": [[2]]}], "test": [{"input": [[1]]}]})
    )
    task = read_tasks([tmp_path / "one.json"])
    write_tasks(tmp_path / "out", {}, task, augment=300, seed=0)
    seen = {(tokens.tobytes(), label.tobytes()) for _, tokens, label in read(tmp_path / "out", "train")}
    assert len(seen) == len(json.loads((tmp_path / "out" / "identifiers.json").read_text())) - 1 == 72


def test_votes_by_hand() -> None:
    a, b, c = (np.array([[n]], np.uint8) for n in (1, 2, 3))
    # b three times; a and c twice each, c with the better mean though the best single q is a's.
    votes = [(a, 0.9), (b, 0.1), (c, 0.5), (b, 0.1), (a, 0.0), (b, 0.2), (c, 0.5)]
    assert [grid.item() for grid in vote(votes)] == [2, 3]
    assert [grid.item() for grid in vote(votes, 9)] == [2, 3, 1]
    # Equal bytes of another shape are another answer.
    assert len(vote([(np.zeros((2, 3), np.uint8), 1.0), (np.zeros((3, 2), np.uint8), 1.0)])) == 2


def test_votes_are_ranked_as_a_comparison_of_all_with_all_ranks_them() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        cast = [(np.full((1, rng.integers(1, 3)), rng.integers(2), np.uint8), float(q)) for q in rng.random(9)]
        answers = {str(grid.tolist()): [q for other, q in cast if np.array_equal(grid, other)] for grid, _ in cast}

        def beats(a: str, b: str, of: dict[str, list[float]] = answers) -> bool:
            return len(of[a]) > len(of[b]) or (len(of[a]) == len(of[b]) and np.mean(of[a]) > np.mean(of[b]))

        want = [next(a for a in answers if sum(beats(b, a) for b in answers) == place) for place in range(len(answers))]
        assert [str(grid.tolist()) for grid in vote(cast, 9)] == want


def test_answers_under_all_augmentations_are_voted_on_together(folder: Path) -> None:
    test = read(folder, "test")
    names, inputs, labels = zip(*test, strict=True)
    rows = [np.array([tokens.reshape(-1) for tokens in each]) for each in (inputs, labels)]
    perfect = attempts(names, *rows, np.zeros(len(names)))
    assert share_solved(perfect, TEST) == 1.0
    assert sorted(perfect) == sorted(TEST)
    assert all(len(tried) == 1 for answered in perfect.values() for _, tried in answered)
    # The first question of eval0 is answered rightly under 2 of 7 ids, and by one wrong grid under two others.
    wrong = rows[1].copy()
    first = [n for n, (name, tokens) in enumerate(zip(names, rows[0], strict=True)) if is_question(name, tokens, 0)]
    assert len(first) == 7
    for number, n in enumerate(first[2:]):
        done = Augmentation.parse(names[n])[1]
        colour = number if number > 2 else 0
        wrong[n] = encode(done.apply(np.full((3, 3), colour, np.uint8)))
    q = np.zeros(len(names))
    tried = attempts(names, rows[0], wrong, q)
    assert share_solved(tried, TEST) == 1.0
    q[first[3:]] = 1.0
    wrong[first[1]] = wrong[first[0]] = 0
    assert share_solved(attempts(names, rows[0], wrong, q), TEST) == 0.75
    assert share_solved({}, TEST) == 0.0


def is_question(name: str, tokens: np.ndarray, number: int) -> bool:
    task, done = Augmentation.parse(name)
    return task == "eval0" and done.undo(decode(tokens)).tolist() == TEST["eval0"]["test"][number]["input"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "holds no task of ARC, but list"),
        ("{}", "holds no task of ARC; give files like"),
        ('{"a": {"train": [], "test": []}}', "task a of .*no demonstration or no question"),
        ('{"a": {"train": [{"input": [[1]]}], "test": []}}', "task a of .*'output'"),
        (
            '{"train": [{"input": [[10]], "output": [[1]]}], "test": []}',
            r"task one of .*a colour that is none of 0\.\.9",
        ),
        (json.dumps({"train": [{"input": [[1] * 31], "output": [[1]]}], "test": []}), r"a grid of shape \(1, 31\)"),
        ('{"train": [{"input": [[1], [1, 2]], "output": [[1]]}], "test": []}', "task one of .*is none of ARC"),
    ],
)
def test_what_is_no_task_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "one.json").write_text(text)
    with pytest.raises(UserError, match=message):
        read_tasks([tmp_path / "one.json"])


def test_a_task_in_both_parts_is_refused(files: dict[str, Path], tmp_path: Path) -> None:
    tasks = read_tasks([files["test"]])
    with pytest.raises(UserError, match="task eval0 is in --train and in --test"):
        write_tasks(tmp_path / "out", tasks, tasks, augment=0, seed=0)
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_tasks([tmp_path / "gone.json"])
