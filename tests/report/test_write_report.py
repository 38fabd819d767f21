"""What a report shows of a run directory, whole or in part."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from looplm.config.load import from_json, override, to_json
from looplm.config.schema import Source
from looplm.errors import UserError
from looplm.metrics.sweep import Sweep
from looplm.report import write_report
from looplm.report.history import History, smooth
from tests.report.parsed import Page

MakeRun = Callable[..., Path]
EVIL = "<script>alert('x & y')</script>"


class TestFullReport:
    def test_every_section_is_there(self, page: Page) -> None:
        assert page.text["h2"] == [
            "Loss by depth",
            "Examples solved",
            "Several tries",
            "Exits",
            "Key-value caches",
            "What the loops do",
            "First states",
            "Held-out text, token by token",
            "Generated text",
            "Training",
            "Throughput, memory, goodput",
            "Run",
            "Configuration",
        ]
        assert page.text["a"] == page.text["h2"]
        assert {link["href"] for link in page.all("a")} == {f"#{one['id']}" for one in page.all("section")}
        assert not page.says("is missing")
        assert page.text["h1"] == ["looplm report: full-run"]
        assert page.says("More loops help: depth 4 lowers the held-out loss by 0.55 nats")
        assert page.says("Calibrated, with a temperature of its own for every depth, the gain is 0.53 nats")

    def test_nothing_comes_from_elsewhere(self, page: Page) -> None:
        assert not [tag for tag, _ in page.elements if tag in {"script", "link", "iframe", "object", "img"}]
        for _, attributes in page.elements:
            for name in ("src", "srcset", "href", "xlink:href"):
                assert (attributes.get(name) or "#").startswith("#")
        assert "://" not in page.source
        assert page.source.count("url(") == page.source.count("url(#")

    def test_the_sample_keeps_its_whitespace_and_tells_all_of_a_token(self, page: Page) -> None:
        tokens = [span for span in page.all("span") if "data-t" in span]
        first, second = (str(token["data-t"]).replace("\xa0", " ") for token in tokens[:2])
        assert first == "'def'   predicted after loop 4 of 4\n" + "   ".join(
            f"depth {depth}: {1.8 / (1 + 0.1 * depth):.2f}" for depth in range(1, 9)
        )
        assert second.startswith("' '   predicted after loop 2 of 4, loss 0.500 nats there\n")
        assert "def total(items):\n    # add <them> up & return\n\treturn sum" in "".join(page.text["span"])

    def test_the_sample_is_shown_in_three_ways_one_at_a_time(self, page: Page) -> None:
        switches = [one for one in page.all("input") if one["type"] == "radio"]
        assert [(one["id"], "checked" in one) for one in switches] == [
            ("heat-change", True), ("heat-loss", False), ("heat-exit", False),
        ]  # fmt: skip
        assert [one["for"] for one in page.all("label")] == [one["id"] for one in switches]
        style = "".join(page.text["style"])
        assert all(f"#{one['id']}:checked ~ .tokens span" in style for one in switches)

    def test_generations_stand_by_their_depth(self, page: Page) -> None:
        assert page.text["h4"] == ["1 loop", "2 loops", "4 loops"]
        assert "items):\n    return sum(items)\n" in page.text["pre"]
        assert page.text["span"][-3:] == ["def total("] * 3, "the line that the texts go on with"

    def test_the_older_sweep_and_the_config_are_listed(self, page: Page) -> None:
        cells = page.text["td"]
        assert "4.8000" in cells
        assert "loop.num_loops" in cells
        assert "12 of 12" in cells
        assert "12,288" in cells  # tokens seen
        assert "12.5 s" in cells


def test_everything_from_outside_is_escaped(make_run: MakeRun) -> None:
    generation = {"loops": 1, "prompt": EVIL, "text": EVIL + '"><img src=x>'}
    sample = {"pieces": [EVIL, "</div>", '"'], "exit_depth": [1, 2, 4], "loss": [None, 0.5, 1.0]}
    sample |= {"depths": [4], "loss_by_depth": [[1.0, 0.5, 1.0]]}
    workdir = make_run({"step": 12, "data": EVIL, "sample": sample, "generations": [generation]}, train=EVIL)
    workdir = workdir.rename(workdir.with_name("<b>run&amp;"))
    page = Page(write_report(workdir))
    assert "<script" not in (workdir / "report.html").read_text()
    assert not page.all("script")
    assert not page.all("b")
    assert not page.all("img")
    assert EVIL in "".join(page.text["span"])
    assert EVIL in "".join(page.text["pre"])
    assert json.dumps(EVIL) in "".join(page.text["td"])
    assert "looplm report: <b>run&amp;" in "".join(page.text["h1"])


@pytest.mark.parametrize(
    ("gain", "tone", "text"),
    [
        ((0.2, 0.18, 0.22), "good", "More loops help: depth 4 lowers the held-out loss by 0.20 nats against depth 1"),
        (
            (0.004, -0.006, 0.014),
            "bad",
            "More loops did not help: depth 4 gains 0.004 nats of held-out loss over depth 1",
        ),
        ((-0.3, -0.35, -0.25), "bad", "More loops made it worse: depth 4 raises the held-out loss by 0.30 nats"),
    ],
)
def test_the_page_says_first_whether_depth_helps(
    make_run: MakeRun, gain: tuple[float, ...], tone: str, text: str
) -> None:
    numbers = {"from_depth": 1, "to_depth": 4} | dict(zip(("nats", "low", "high"), gain, strict=True))
    page = Page(write_report(make_run({"step": 12, "gain": numbers})))
    assert page.all("li")[0]["class"] == tone
    assert page.text["li"][0].strip().startswith(text)


def test_without_a_sweep_the_page_says_how_to_make_one(make_run: MakeRun) -> None:
    page = Page(write_report(make_run()))
    assert page.says("No depth has been compared yet; ")
    assert page.says("The depth sweep is missing; ")
    assert page.says("The exit histogram is missing; ")
    assert page.says("What every loop does on held-out text is missing; ")
    assert page.text["code"].count("looplm eval WORKDIR") == 4
    assert not {"Generated text", "Held-out text, token by token"} & {*page.text["h2"]}


def test_the_largest_step_is_shown_and_an_older_one_is_told(make_run: MakeRun) -> None:
    page = Page(write_report(make_run({"step": 9}, {"step": 10, "exit_histogram": None, "sample": None})))
    assert page.says("The held-out numbers are from step 10")
    assert page.says("Training has gone on to step 12 since")


def test_parts_of_the_exits_may_be_missing(make_run: MakeRun) -> None:
    sample = {
        "pieces": ["a", "b"],
        "exit_depth": None,
        "loss": None,
        "depths": [1, 4],
        "loss_by_depth": [[2, 3], [1, 4]],
    }
    page = Page(write_report(make_run({"step": 12, "exit_histogram": None, "sample": sample})))
    assert page.says("The exit histogram is missing")
    assert [one["id"] for one in page.all("input")] == ["heat-change", "heat-loss"]
    better, worse = (one for one in page.all("span") if "data-t" in one)
    assert ("class" in better, worse["class"]) == (False, "worse")
    assert (better["style"], worse["style"]) == ("--c:0.60;--l:0.07", "--c:0.60;--l:0.30")
    old = {"pieces": ["a", "b"], "exit_depth": [1, 2], "loss": [None, 0.5]}
    page = Page(write_report(make_run({"step": 12, "sample": old, "calibrated": None, "loops": None})))
    assert [one["id"] for one in page.all("input")] == ["heat-loss", "heat-exit"]
    assert not page.says("Calibrated")


def test_a_run_of_one_step_without_most_metrics(make_run: MakeRun) -> None:
    workdir = make_run()
    (workdir / "metrics.jsonl").write_text('{"step": 1, "train/loss": "NaN"}\n{"step": 2, "perf/tokens_per_s": 5.0}\n')
    page = Page(write_report(workdir))
    assert page.says("The training loss is missing")
    assert page.says("steps whose loss is not finite")
    assert len(page.pictures) == 1


@pytest.mark.parametrize(
    ("changes", "cosine", "told"),
    [
        ([0.9, 0.2, 0.1], 0.3, "Loop 2 changes the state by 20.0\u00a0% of its size, loop 1 by 90.0\u00a0%. All"),
        ([0.9, 0.005, 0.004], 0.3, "From loop 2 on a loop changes less than 1\u00a0%: it idles."),
        (
            [0.9, 0.005, 0.1],
            0.96,
            "loop 1 by 90.0\u00a0%. The states of different tokens are alike (cosine 0.960): they",
        ),
    ],
)
def test_idle_and_collapsing_loops_are_told(make_run: MakeRun, changes: list[float], cosine: float, told: str) -> None:
    loops = {"residual_rel": changes, "state_norm": [1.0] * 3, "update_cosine": [0.0] * 3}
    page = Page(
        write_report(make_run({"step": 12, "trained_depth": 2, "loops": loops | {"token_correlation": [cosine] * 3}}))
    )
    assert page.says(told)


def test_tasks_are_shown_depth_by_depth(make_run: MakeRun) -> None:
    workdir = make_run({"step": 12})
    for step, depth, value in ((12, 1, 0.25), (12, 4, 0.5), (6, 4, 0.1)):
        found = {"alias": "sums", "acc,none": value, "acc_stderr,none": value / 10, "exact_match,strict": 1 - value}
        results = {"results": {"sums": found | {"exact_match_stderr,strict": "N/A"}}, "samples": {}}
        (workdir / "eval" / f"lm_eval-{step}-sums-depth-{depth}.json").write_text(json.dumps(results))
        (workdir / "eval" / f"lm_eval-{step}-ema-sums-depth-{depth}.json").write_text("{}")
    page = Page(write_report(workdir))
    assert page.table("tasks", "task", "metric") == [
        ["sums", "acc", "0.2500 ± 0.0250", "0.5000 ± 0.0500"], ["sums", "exact_match,strict", "0.7500", "0.5000"],
    ]  # fmt: skip
    assert "acc of sums: 0.2500 at depth 1, 0.5000 at depth 4." in page.pictures
    (workdir / "eval" / "lm_eval-12-sums-depth-2.json").write_text('{"results": [1]}')
    with pytest.raises(UserError, match=r"lm_eval-12-sums-depth-2\.json holds no results of tasks"):
        write_report(workdir)


def test_the_balance_of_experts_is_shown_by_loop(make_run: MakeRun) -> None:
    workdir = make_run()
    experts = {"kind": "moe", "num_experts": 4, "experts_per_token": 1, "dense_layers": [0]}
    run = override(from_json(workdir / "config.json"), {"model.block_layers": 3, "model.feed_forward": experts})
    (workdir / "config.json").write_text(to_json(run))
    rows = [
        {"step": step, "moe/dead": 3.0 - step, "moe/dropped": 0, "moe/load_max": 2.0, "moe/load_min": 0.0}
        | {"moe/load_max_loop_1": 1.5, "moe/load_min_loop_1": 0.5, "moe/load_max_loop_2": 1.0 + step}
        | {"moe/load_min_loop_2": 0.25, "moe/changed_loop_2": 0.125 * step}
        for step in (1, 2)
    ]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    load = [[[8, 0, 4, 4], [4, 4, 4, 4]], [[4, 4, 4, 4], [4, 2, 1, 9]]]
    (workdir / "experts.jsonl").write_text(json.dumps({"step": 2, "loops": [1, 2], "moe/load/block": load}) + "\n")
    page = Page(write_report(workdir))
    assert "Experts" in page.text["h2"]
    assert page.says("Experts without a token in any loop of a step: 1 at the end, 2 at most.")
    assert page.table("experts", "loop", "most loaded") == [
        ["all", "2.00", "0.00", "-"], ["1", "1.50", "0.50", "-"], ["2", "3.00", "0.25", "0.25"],
    ]  # fmt: skip
    *balance, every_expert = page.pictures[-5:]
    assert "Experts without a token against step: 2 at step 1, 1 at step 2." in balance
    assert page.table("experts", "", "0") == [
        ["layer 1, loop 1", "2.00", "0.00", "1.00", "1.00"], ["layer 1, loop 2", "1.00", "1.00", "1.00", "1.00"],
        ["layer 2, loop 1", "1.00", "1.00", "1.00", "1.00"], ["layer 2, loop 2", "1.00", "0.50", "0.25", "2.25"],
    ]  # fmt: skip
    assert "4 experts in 2 loops of 2 layers, over the mean. Most: 2.25, expert 3 of layer 2 in loop 2" in every_expert


def test_the_tokens_of_every_source_are_shown(make_run: MakeRun) -> None:
    sources = tuple(Source(data=f"data/{name}", name=name, weight=1.0) for name in ("code", "books"))
    workdir = make_run(train=sources)
    rows = [
        {"step": step, "data/tokens_code": 3000 * step, "data/epochs_code": 0.5 * step}
        | {"data/tokens_books": 1000 * step, "data/epochs_books": 2.0 * step}
        for step in (1, 2)
    ]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = Page(write_report(workdir))
    assert "Data" in page.text["h2"]
    rows = [["code", "6,000", "75.00 %", "1.00"], ["books", "2,000", "25.00 %", "4.00"]]
    assert page.table("data", "source") == rows


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_told(make_run: MakeRun, make_sweep: Callable[..., Sweep], bad: float) -> None:
    loss = [bad, *(3.0 for _ in range(7))]
    pieces = {"pieces": ["a", "b"], "depths": [1, 4], "loss_by_depth": [[bad, 1.0], [bad, 2.0]]}
    workdir = make_run()
    make_sweep(step=12, loss=loss, loss_high=loss, change_high=loss, sample=pieces).save(workdir / "eval")
    page = Page(write_report(workdir))
    assert page.says("The held-out loss is not a finite number at depth 1")
    assert page.table("loss-by-depth", "depth", "loss", "against depth 4")[0][:4:2] == ["1", "not finite"]
    styles = [one["style"] for one in page.all("span") if "data-t" in one]
    assert styles == ["--c:0.00;--l:0.60", "--c:0.60;--l:0.15"]


def test_writing_again_replaces_the_file_and_leaves_nothing_else(make_run: MakeRun) -> None:
    workdir = make_run()
    before = sorted(path.name for path in workdir.iterdir())
    first = write_report(workdir).read_bytes()
    assert write_report(workdir).read_bytes() == first
    assert sorted(path.name for path in workdir.iterdir()) == sorted([*before, "report.html"])


def test_mistakes_name_the_file_and_the_remedy(make_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere does not exist; .*looplm train"):
        write_report(tmp_path / "nowhere")
    workdir = make_run({"step": 12})
    sweep = workdir / "eval" / "depth_sweep-12.json"
    full = sweep.read_text()
    for text in ("{", "[]", json.dumps(json.loads(full) | {"loss": [1.0]})):
        sweep.write_text(text)
        with pytest.raises(UserError, match=r"depth_sweep-12\.json is no depth sweep: .*run `looplm eval` again"):
            write_report(workdir)
    sweep.write_text(json.dumps(json.loads(full) | {"sample": {"pieces": ["a"], "exit_depth": []}}))
    with pytest.raises(UserError, match="differ in length"):
        write_report(workdir)
    (workdir / "config.json").unlink()
    sweep.unlink()
    with pytest.raises(UserError, match=r"config\.json does not exist"):
        write_report(workdir)
    (workdir / "metrics.jsonl").write_text('{"step": 1, ')
    with pytest.raises(UserError, match="holds no step yet"):
        write_report(workdir)
    (workdir / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match=r"metrics\.jsonl does not exist"):
        write_report(workdir)


def test_history_columns_leave_out_what_is_absent_or_not_finite() -> None:
    history = History(
        [{"step": 1, "a": 1.0}, {"step": 2, "a": float("nan")}, {"step": 3, "b": 2.0}, {"step": 4, "a": 3}]
    )
    steps, values = history.column("a")
    assert steps.tolist() == [1, 4]
    assert values.tolist() == [1.0, 3.0]
    assert history.last("b") == 2.0
    assert history.median("a") == 2.0
    assert history.last("c") is None
    assert history.last_step == 4
    rows = [{"step": 1, "train/loss_loop_10": 1.0, "train/loss_loop_2": 1.0, "train/loss": 1.0}]
    assert list(History(rows).numbered("train/loss_loop_")) == [2, 10]


@pytest.mark.parametrize("length", [1, 2, 39, 40, 500])
def test_smoothing_keeps_length_and_constants(length: int) -> None:
    np.testing.assert_allclose(smooth(np.full(length, 3.0)), np.full(length, 3.0))


def test_neither_sinks_nor_report_import_jax() -> None:
    program = "import sys, looplm.report, looplm.metrics.sinks; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
