"""With lm-evaluation-harness itself: its conventions, and two real tasks at several depths."""

import io
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from rich.console import Console

from looplm.errors import UserError
from looplm.lm_eval import answers as answers_file
from looplm.lm_eval import opening
from looplm.lm_eval.answers import Answers
from looplm.lm_eval.asked import read_asked
from looplm.lm_eval.encoding import Encoding, Span, windows

pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness: pip install looplm[lm-eval]")

TASKS = Path(__file__).parent / "tasks"
DEPTHS = (1, 2, 3, 5)
TEXTS = ["", "ab", "ab ", "the moth", "<b>x y", " \n", "tt", "h h"]


@pytest.fixture(autouse=True)
def one_device_and_its_own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(answers_file.jax, "local_devices", lambda: jax.devices()[:1])
    opening.opened.cache_clear()
    yield
    opening.opened.cache_clear()


def test_pairs_are_encoded_as_its_own_models_do(letters: Callable) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import TemplateLM

    encoding = Encoding(letters())

    class Its(TemplateLM):
        eot_token_id = 1

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            return list(encoding.inside(string) if add_special_tokens is False else encoding.beginning(string))

        def _loglikelihood_tokens(self, requests: Any, **_: Any) -> Any:
            return [Span((*before, *after), len(after)) for _, before, after in requests]

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any: ...

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any: ...

    pairs = [(a, b) for a in TEXTS if a.strip() or not a for b in TEXTS if b]
    requests = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
    found = [
        (pair, theirs, encoding.pair(*pair)) for pair, theirs in zip(pairs, Its().loglikelihood(requests), strict=True)
    ]
    assert [x for x in found if x[1].num_scored and x[1] != x[2]] == []
    assert len(found) > 40


def test_stretches_are_its_own() -> None:
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    for length in range(30):
        for longest in (1, 2, 5, 9, 40):
            ids = list(range(length))
            theirs = map(make_disjoint_window, get_rolling_token_windows(ids, -1, longest, 1))
            assert list(windows(ids, -1, longest)) == [Span((*a, *b), len(b)) for a, b in theirs]


@pytest.mark.parametrize("given", [{}, {"until": "x"}, {"max_tokens": 9}, {"do_sample": False, "temperature": 2.0}])
def test_wishes_are_read_as_it_reads_them(given: dict[str, Any]) -> None:
    from lm_eval.models.utils import normalize_gen_kwargs

    theirs, own = normalize_gen_kwargs(given, 256), read_asked(given, 1000)
    assert (list(own.stop), own.max_tokens) == (theirs["until"], theirs["max_gen_toks"])
    assert own.temperature == theirs.get("temperature", 0.0)


@pytest.fixture
def printed(finished_run: Path) -> Callable[..., tuple[dict, str]]:
    """Evaluates the two tasks on a copy of the finished run."""
    from looplm.lm_eval.tasks import evaluate_tasks

    def run(folder: Path, tasks: str = "capitals,next_word", **options: Any) -> tuple[dict, str]:
        workdir = folder / "run"
        if not workdir.exists():
            shutil.copytree(finished_run, workdir)
        text = io.StringIO()
        options = {"task_path": TASKS} | options
        return evaluate_tasks(workdir, tasks, console=Console(file=text, width=160), **options), text.getvalue()

    return run


def passes_of(workdir: Path) -> int:
    from looplm.lm_eval.model import LooplmModel

    return LooplmModel(workdir=str(workdir)).answers.num_passes


def test_two_tasks_at_four_depths_from_one_pass_equal_runs_of_one_depth(
    printed: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(TASKS.parent)
    together, text = printed(tmp_path, depths="1,2,3,5", task_path=Path(TASKS.name))
    assert set(together) == set(DEPTHS)
    passes = passes_of(tmp_path / "run")
    answered = []
    for depth in DEPTHS:
        opening.opened.cache_clear()
        alone = printed(tmp_path, depths=str(depth))[0][depth]
        assert passes_of(tmp_path / "run") == passes
        for task, metrics in together[depth]["results"].items():
            assert alone["results"][task] == pytest.approx(metrics)
        for task, samples in alone["samples"].items():
            others = together[depth]["samples"][task]
            assert [s["doc"] for s in samples] == [s["doc"] for s in others]
            if task == "next_word":
                assert [s["resps"] for s in samples] == [s["resps"] for s in others]
            else:
                mine, yours = ([float(r[0][0]) for s in many for r in s["resps"]] for many in (samples, others))
                np.testing.assert_allclose(mine, yours, rtol=1e-5)
                answered.append(tuple(np.round(mine, 3)))
    assert len(set(answered)) == len(DEPTHS)
    assert len(together[1]["samples"]["capitals"]) == 20
    for word in ("capitals", "next_word", "acc_norm", "exact_match", "vs depth 3 (trained)"):
        assert word in text
    saved = json.loads((tmp_path / "run/eval/lm_eval-3-capitals+next_word-depth-5.json").read_text())
    assert saved["results"]["capitals"]["acc,none"] == together[5]["results"]["capitals"]["acc,none"]
    assert saved["config"]["model_args"]["loops"] == 5


def test_its_command_line_runs_every_depth(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from looplm.lm_eval.__main__ import main

    monkeypatch.chdir(TASKS)
    words = ["--model", "looplm", "--model_args", f"workdir={finished_run},loops=1+3,max_length=64"]
    words += ["--tasks", "capitals", "--include_path", str(TASKS), "--output_path", str(tmp_path), "--limit", "4"]
    monkeypatch.setattr(sys, "argv", ["lm_eval", *words])
    assert main() == 0
    files = [json.loads(path.read_text()) for path in sorted(tmp_path.rglob("results_*.json"))]
    assert [file["config"]["looplm_loops"] for file in files] == [1, 3]
    assert [file["config"]["looplm_max_length"] for file in files] == [64, 64]
    assert capsys.readouterr().out.count("|capitals|") == 2
    for argument, said in (("loop=1", "did you mean loops?"), ("loops=0", "loop counts of at least 1")):
        words[3] = f"workdir={finished_run},{argument}"
        monkeypatch.setattr(sys, "argv", ["lm_eval", *words])
        assert main() == 2
        assert said in capsys.readouterr().err


def test_its_cache_of_answers_is_one_of_a_depth(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks for them by the question alone. Settings may stand in a file."""
    from looplm.lm_eval.__main__ import main

    monkeypatch.chdir(TASKS)
    settings = {"model": "looplm", "model_args": {"workdir": str(finished_run), "loops": "1+3"}, "limit": 4}
    settings |= {"use_cache": str(tmp_path / "cache"), "output_path": str(tmp_path / "out"), "log_samples": True}
    (tmp_path / "settings.yaml").write_text(json.dumps(settings | {"tasks": ["capitals"], "include_path": str(TASKS)}))
    monkeypatch.setattr(sys, "argv", ["lm_eval", "run", "--config", str(tmp_path / "settings.yaml")])
    assert main() == 0
    answered = [
        [json.loads(line)["resps"] for line in path.read_text().splitlines()]
        for path in sorted(tmp_path.rglob("samples_capitals_*.jsonl"))
    ]
    assert [len(one) for one in answered] == [4, 4]
    assert answered[0] != answered[1]
    assert len(list(tmp_path.glob("cache-depth-*_rank0.db"))) == 2


def test_the_chat_template_is_applied(
    drawn_model: Callable, letters: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval import simple_evaluate

    from looplm.lm_eval import model as model_file
    from looplm.lm_eval.tasks import load_tasks

    template = "<b>{% for m in messages %}[{{ m.content }}]{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    answers = Answers(drawn_model(letters(), template), [2], max_length=64)
    monkeypatch.setattr(model_file, "opened", lambda *_: answers)
    tasks, manager = load_tasks(["capitals", "next_word"], TASKS)
    model = model_file.LooplmModel(workdir="drawn", loops=2)
    result = simple_evaluate(model, tasks=tasks, task_manager=manager, limit=2, apply_chat_template=True)
    for samples in result["samples"].values():
        for sample in samples:
            assert sample["arguments"][0][0].startswith("<b>[")
            assert sample["arguments"][0][0].endswith("]>")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"tasks": "capital"},
            "--tasks 'capital' is none of the harness's .* has capitals, next_word; give the folder",
        ),
        ({"task_path": Path("nowhere")}, "--task-path nowhere is no folder"),
        ({"depths": "1,x"}, "holds something else than loop counts"),
        ({"limit": 0}, "--limit 0 must be at least 1"),
    ],
)
def test_mistakes_are_one_line(printed: Callable, tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        printed(tmp_path, **options)
    assert "\n" not in str(error.value)


def test_a_run_without_a_tokenizer_and_a_task_without_data(
    printed: Callable, finished_run: Path, tmp_path: Path
) -> None:
    tasks = Path(shutil.copytree(TASKS, tmp_path / "tasks"))
    (tasks / "capitals.jsonl").unlink()
    with pytest.raises(UserError, match=r"task 'capitals' cannot be loaded: .*capitals\.jsonl"):
        printed(tmp_path, task_path=tasks)
    workdir = Path(shutil.copytree(finished_run, tmp_path / "bare" / "run"))
    (workdir / "tokenizer.model").unlink()
    with pytest.raises(UserError, match="came without a tokenizer"):
        printed(tmp_path / "bare")
