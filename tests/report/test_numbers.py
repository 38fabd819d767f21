"""Every number in a table of the report is the one in the file that it is from."""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from tests.report.conftest import (
    example_answers,
    example_exits,
    example_first_states,
    example_kv,
    example_restarts,
    example_run,
    example_sweep,
    measured,
)  # fmt: skip
from tests.report.parsed import Page

STEP = 12
SWEEP = example_sweep(STEP)


def close(cell: str, value: float | None) -> bool:
    """Whether a cell shows a number as exactly as it has digits."""
    if value is None:
        return cell == "-"
    text = cell.removesuffix(" %").replace(",", "")
    value = 100 * value if cell.endswith("%") else value
    decimals = len(text.partition(".")[2].partition("e")[0])
    reach = 0.51 * 10.0**-decimals * 10.0 ** int(text.partition("e")[2] or 0)
    return bool(abs(float(text) - value) <= reach + 1e-12)


def assert_rows(rows: list[list[str]], wanted: list[list[Any]]) -> None:
    """Numbers are compared as numbers, an interval by its ends, texts as they are."""
    assert len(rows) == len(wanted)
    for row, values in zip(rows, wanted, strict=True):
        assert len(row) == len(values)
        for cell, value in zip(row, values, strict=True):
            if isinstance(value, str):
                assert cell == value
            elif isinstance(value, tuple):
                assert all(close(*pair) for pair in zip(cell.split(" to "), value, strict=True)), (cell, value)
            else:
                assert close(cell, value), (cell, value)


def columns(record: dict[str, Any], *names: str) -> Iterator[tuple[Any, ...]]:
    return zip(*(record[name] for name in names), strict=True)


def changes(record: dict[str, Any], gain: dict[str, float], depth: int, at: int) -> list[Any]:
    """The change against depth 4 and its interval: the loss there is that at depth 1 less the gain."""
    if depth == 4:
        return ["reference", ""]
    change = record["loss"][at] - (record["loss"][0] - gain["nats"])
    return [change, (record["change_low"][at], record["change_high"][at])]


def test_losses_by_depth(page: Page) -> None:
    fitted = SWEEP["calibrated"]
    whole, paired, losses = [], [], []
    for at, depth in enumerate(SWEEP["depths"]):
        raw = changes(SWEEP, SWEEP["gain"], depth, at)
        loss, bits, accuracy = (SWEEP[name][at] for name in ("loss", "bits_per_byte", "accuracy"))
        whole.append([depth, loss, *raw, bits, accuracy])
        paired.append([depth, *raw, *changes(fitted, fitted["gain"], depth, at)])
        ends = SWEEP["loss_low"][at], SWEEP["loss_high"][at]
        losses.append([depth, loss, ends, fitted["loss"][at], fitted["temperature"][at]])
    section = "loss-by-depth"
    assert_rows(page.table(section, "depth", "loss", "against depth 4"), whole)
    assert_rows(page.table(section, "depth", "change"), paired)
    assert_rows(page.table(section, "depth", "loss", "95 % interval"), losses)
    assert_rows(page.table(section, "depth", "accuracy"), [list(row) for row in columns(SWEEP, "depths", "accuracy")])


def test_examples_solved(page: Page) -> None:
    one = SWEEP["solve"]
    names = ("depths", "at", "at_low", "at_high", "by", "by_low", "by_high", "lost")
    rows = [[row[0], row[1], row[2:4], row[4], row[5:7], row[7]] for row in columns(one, *names)]
    assert_rows(page.table("examples-solved", "depth", "solved at"), rows)
    assert page.says(
        "Of the examples that are ever solved: 50\u00a0% of them after 2 loops, 90\u00a0% of them after 3 loops."
    )


def test_several_tries(page: Page) -> None:
    one = example_restarts(STEP)
    wanted = [list(row) for row in columns(one, "tries", "settled", "vote", "any_of_them")]
    assert_rows(page.table("several-tries", "tries"), wanted)
    assert page.says("16 loops a try")
    assert page.says("over the last 12 loops")


def test_halting_and_puzzles(reasoner_page: Page) -> None:
    one = example_answers(STEP)
    one["segment"] = [1, 2, 3]
    rows = [list(row) for row in columns(one, "segment", "halted", "right", "solved")]
    assert_rows(reasoner_page.table("halting", "segment"), rows)
    assert reasoner_page.says("by votes over augmentations: 12.5\u00a0% of 40 tasks solved.")
    assert any("right when halted: - at segment 1, 85.0 % at segment 3" in words for words in reasoner_page.pictures)
    for words in ("all labels met", "the gate knew", "segments of rows that end", "rows that end in a step"):
        assert any(words in told for told in reasoner_page.pictures)
    assert reasoner_page.tables["puzzles"][:3] == [
        [["4", "2"], ["4", "3"]],
        [["1", "2"], ["4", "4"]],
        [["1", "2"], ["3", "4"]],
    ]
    assert reasoner_page.tables["puzzles"][3] == [["1", "9", "3", "4"]]
    labels = [one["aria-label"] for one in reasoner_page.all("table") if str(one["class"]).startswith("cells")]
    assert labels[:4] == [
        "Puzzle 1 after 4 loops: 3 of 3 wrong",
        "Puzzle 1 after 8 loops: 1 of 3 wrong",
        "Puzzle 1 after 12 loops: 0 of 3 wrong",
        "Puzzle 2 after 4 loops: 0 of 3 wrong",
    ]
    assert [cell.get("class") for cell in reasoner_page.all("td") if cell.get("class") in ("wrong", "given")] == [
        "wrong",
        "given",
        "wrong",
        "wrong",
        "given",
        "wrong",
        "given",
    ]


def test_exits(page: Page) -> None:
    exits = example_exits(STEP)
    for rule in exits["rules"]:
        wanted = []
        for x in rule["points"]:
            row = [x[name] for name in ("rule", "mean_depth", "depth_p50", "depth_p90", "depth_p99", "loss", "excess")]
            row += [(x["excess_low"], x["excess_high"]), x["accuracy"], x["disagreement"]]
            row += [x["controls"][name] for name in ("fixed", "random", "shuffled", "oracle")]
            wanted.append([*row, x["gain"], (x["gain_low"], x["gain_high"])])
        found = [
            table[1:] for table in page.tables["exits"] if table[1][0].startswith(rule["name"]) and len(table[0]) > 9
        ]
        assert_rows(found[0], wanted)
    fixed = [[f"all at depth {depth}", depth, loss] for depth, loss in enumerate(exits["loss"], 1)]
    oracle = [["oracle", point["mean_depth"], point["loss"]] for point in exits["oracle"]]
    assert_rows(page.table("exits", "exits"), fixed + oracle)
    names = ("rule", "tolerance", "confidence", "mean_depth", "excess_upper", "disagreement_upper")
    assert_rows(
        page.table("exits", "rule", "tolerance (nats)"), [[exits["rules"][0]["safe"][0][name] for name in names]]
    )
    shares = [[loop, share] for loop, share in enumerate(SWEEP["exit_histogram"], 1)]
    assert_rows(page.table("exits", "loop", "tokens"), shares)


def test_caches(page: Page) -> None:
    names = ("policy", "bytes_per_token", "share", "loss", "change", "ends", "agreement", "mean_depth")
    wanted = [
        [(one | {"ends": (one["change_low"], one["change_high"])})[name] for name in names]
        for one in example_kv(STEP)["policies"]
    ]
    assert_rows(page.table("key-value-caches", "policy"), wanted)


def test_loops_and_first_states(page: Page) -> None:
    loops = SWEEP["loops"]
    leaving = [*loops["exit_probability"], *[None] * 4]
    names = ("residual_rel", "state_norm", "update_cosine", "token_correlation")
    rows = zip(columns(loops, *names), leaving, strict=True)
    assert_rows(
        page.table("what-the-loops-do", "loop", "change", "size"),
        [[loop, *row, p] for loop, (row, p) in enumerate(rows, 1)],
    )
    states = example_first_states(STEP)
    names = ("depths", "state_distance", "divergence", "agreement", "loss", "loss_spread")
    assert_rows(page.table("first-states", "depth"), [list(row) for row in columns(states, *names)])


def test_tokens(page: Page) -> None:
    sample = SWEEP["sample"]
    rows = columns(sample, "pieces", "exit_depth", "loss")
    pieces = [text.replace("\n", "\\n").replace("\t", "\\t") for text in sample["pieces"]]
    wanted = [
        [f"'{piece}'", exit_depth, loss, *(losses[at] for losses in sample["loss_by_depth"])]
        for at, (piece, (_, exit_depth, loss)) in enumerate(zip(pieces, rows, strict=True))
    ]
    assert_rows(page.table("held-out-text-token-by-token", "token"), wanted)


@pytest.mark.parametrize(
    ("section", "name"), [("training", "train/grad_norm"), ("throughput-memory-goodput", "perf/host_memory_gb")]
)
def test_numbers_over_the_steps(page: Page, section: str, name: str) -> None:
    steps = range(1, 13)
    run = example_run(12)
    assert_rows(page.table(section, "step", name), [[step, measured(step, run)[name]] for step in steps])


def test_a_long_run_is_told_at_steps_evenly_spread() -> None:
    from looplm.report import curves
    from looplm.report.history import History

    column = History([{"step": step, "x": math.sqrt(step)} for step in range(1, 1001)]).column("x")
    rows = curves.rows([column])
    assert len(rows) == curves.ROWS
    assert [rows[0][0], rows[-1][0]] == ["1", "1,000"]
    gaps = {int(b[0].replace(",", "")) - int(a[0].replace(",", "")) for a, b in pairwise(rows)}
    assert gaps <= {52, 53}
    assert_rows(rows, [[float(row[0].replace(",", "")), math.sqrt(float(row[0].replace(",", "")))] for row in rows])
