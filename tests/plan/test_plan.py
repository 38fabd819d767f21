"""`looplm plan`: recipes that can be trained as they are printed, time and cost, what a loop costs, and mistakes."""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import jax
import pytest
from rich.console import Console

from looplm.config.load import load_config, override
from looplm.config.schema import Run
from looplm.errors import UserError
from looplm.hardware import DEVICES, find
from looplm.plan.advice import batch_tokens_for, learning_rate_for
from looplm.plan.budget import parse_tokens
from looplm.plan.chips import TPUS, kind_of, parse_chips
from looplm.plan.command import Wish, make_plan
from looplm.plan.estimate import Recipe, estimate
from looplm.plan.report import Plan, print_plan
from looplm.plan.traced import Form, Traced
from looplm.sharding.mesh import build_mesh
from looplm.sharding.rules import MESH_AXES
from looplm.train.flops import step_flops
from looplm.train.memory import bytes_of
from looplm.train.program import Program

WISH = Wish(tokens="1T", price=2.0, mfu=0.5)
DOCS = Path(__file__).parents[2] / "docs" / "scaling.md"


@pytest.fixture(scope="module")
def run() -> Run:
    return load_config("ouro:1.4b")


@pytest.fixture(scope="module")
def plan(run: Run) -> Plan:
    return make_plan("ouro:1.4b", run, "v5p:4x4x4", WISH)


@pytest.fixture(scope="module")
def small(tiny_run: Callable[..., Run]) -> Run:
    return tiny_run(**{"data.batch_tokens": 2048})


@pytest.fixture(scope="module")
def text(plan: Plan) -> str:
    console = Console(file=io.StringIO(), width=80, markup=False, emoji=False, highlight=False, soft_wrap=True)
    print_plan(plan, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_recipe_is_a_run_with_the_state_and_the_flops_that_were_planned(plan: Plan, run: Run) -> None:
    chips, one = parse_chips("v5p:4x4x4"), plan.best
    changed = override(run, one.recipe.settings)
    program = Program(changed, build_mesh(changed.mesh, chips.devices))
    assert program.mesh.shape == one.recipe.mesh
    assert ("per_layer" if program.gathers_per_layer else "once") == one.recipe.form.gather
    assert one.state_bytes == pytest.approx(bytes_of(program.abstract_state()), rel=1e-3)  # and some of the batch
    flops = step_flops(program.trace().jaxpr).at(0)
    assert one.flops_per_token.model * run.data.batch_tokens == pytest.approx(flops.model, rel=1e-6)
    assert one.time.compute_s * 64 * chips.device.peak_flops == pytest.approx(flops.hardware, rel=1e-3)


def test_the_example_of_the_docs_is_what_is_printed(text: str) -> None:
    section = DOCS.read_text().partition("looplm plan ouro:1.4b --chips v5p:4x4x4 --tokens 1T --mfu 0.5 --price 2\n")[2]
    shown = [line.strip() for line in section.partition("```text\n")[2].partition("```")[0].splitlines()]
    printed = [line.strip() for line in text.splitlines()]
    number = re.compile(r"\d[\d,]*\.?\d*(?:e[+-]?\d+)?")
    assert [number.sub("#", line) for line in shown] == [number.sub("#", line) for line in printed]
    for said, found in zip(number.findall("\n".join(shown)), number.findall("\n".join(printed)), strict=True):
        # Versions of JAX trace a little differently.
        assert float(said.replace(",", "")) == pytest.approx(float(found.replace(",", "")), rel=0.03, abs=0.02)


def test_recipes_are_ranked_and_fit(plan: Plan) -> None:
    times = [one.time.step_s for one in plan.recipes]
    assert len(times) == 3
    assert times[0] <= min(times) * 1.02
    assert all(one.fits for one in plan.recipes)
    assert [one.recipe.mesh["tensor"] * one.recipe.mesh["context"] for one in plan.recipes] == [1, 2, 2]


def test_days_and_cost_are_those_of_the_tokens(plan: Plan, run: Run) -> None:
    budget, best = plan.budget, plan.best
    assert budget.num_steps == -(-(10**12) // run.data.batch_tokens)
    assert budget.days == pytest.approx(1e12 / best.tokens_per_s / 86400)
    expected = 1e12 * best.flops_per_token.model / (0.5 * 64 * 459e12)
    assert budget.expected_days == pytest.approx(expected / 86400)
    assert budget.cost == pytest.approx(expected / 3600 * 64 * 2.0)


def test_a_loop_costs_what_the_program_with_one_more_does(plan: Plan, run: Run) -> None:
    assert [one.num_loops for one in plan.looped] == [3, 4, 5, 8]
    five, recipe = plan.looped[2].estimate, plan.best.recipe
    deeper, chips = override(run, {"loop.num_loops": 5}), parse_chips("v5p:4x4x4")
    traced = estimate(deeper, chips, Traced(deeper, chips, recipe.form), recipe)
    assert five.flops_per_token.model == pytest.approx(traced.flops_per_token.model, rel=1e-6)
    assert five.total_bytes == pytest.approx(traced.total_bytes, rel=0.01)
    assert five.time.step_s == pytest.approx(traced.time.step_s, rel=0.01)


def test_text_names_every_rule_and_its_source(plan: Plan, text: str) -> None:
    assert {rule.about for rule in plan.advice} >= {"tokens", "batch", "learning rate"}
    for rule in plan.advice:
        assert "arXiv" in rule.source or "github.com" in rule.source
        assert f"{rule.says} [{rule.source}]" in text


def test_what_the_user_sets_is_kept(command, config_file: Callable[[Run], Path], small: Run) -> None:
    options = ("--set", "mesh.fsdp=2", "--set", "loop.remat=layer", "--json")
    code, stdout, _ = command("plan", config_file(small), "--chips", "2xH100", *options)
    assert code == 0
    record = json.loads(stdout)
    assert [one["mesh"] for one in record["recipes"]] == [{"fsdp": 2}]
    assert record["recipes"][0]["settings"]["loop.remat"] == "layer"
    # Nothing is assumed of a price.
    assert (record["budget"]["price"], record["budget"]["cost"]) == (None, None)


def test_replicas_are_copies_beyond_the_fast_links(small: Run) -> None:
    chips, form = parse_chips("16xH100"), Form(1, 1, 1, "loop", "once", "gathered")
    traced, ones = Traced(small, chips, form), dict.fromkeys(MESH_AXES, 1)
    found = [
        estimate(small, chips, traced, Recipe(ones | {axis: 2, "fsdp": 8}, form, 1, 8)) for axis in ("data", "replica")
    ]
    assert found[0].time == found[1].time
    assert found[0].total_bytes == found[1].total_bytes
    assert found[0].sent_once_bytes > 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("32xQ100", "no figures are known of Q100"),
        ("64xv5p", "v5p:4x4x4"),
        ("v5p:4x4", "no TPU slice"),
        ("abc", "not understood"),
        ("0xH100", "not understood"),
        ("8xH100 --set mesh.fsdp=3", "the sizes do not fit 8 devices"),
        ("7xH100", "7 devices cannot share the 128 sequences of a step evenly"),
    ],
)
def test_a_mistake_is_one_line(command, config_file, small: Run, words: str, said: str) -> None:
    code, _, stderr = command("plan", config_file(small), "--chips", *words.split())
    assert code == 2
    assert said in stderr
    assert len(stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "wish", [Wish(tokens="many"), Wish(tokens="0"), Wish(price=-1.0), Wish(mfu=2.0), Wish(compile=True)]
)
def test_a_wrong_wish_is_refused(small: Run, wish: Wish) -> None:
    with pytest.raises(UserError):
        make_plan("tiny", small, "8xH100", wish)


def test_what_does_not_fit_says_how_much_it_needs(small: Run) -> None:
    huge = override(small, {"model.dim": 2**15, "model.hidden_dim": 2**17, "model.block_layers": 8, "mesh.fsdp": 2})
    with pytest.raises(
        UserError, match=r"no recipe fits 2xH100 .*about \d+\.\d GiB at the least, of 78\.7.*more chips"
    ):
        make_plan("huge", huge, "2xH100", Wish(), given={"mesh.fsdp", "loop.remat"})


def test_every_device_that_is_known_can_be_planned_for() -> None:
    for pattern, device in DEVICES:
        assert find(kind_of(pattern)) == device
        if not device.torus:
            assert parse_chips(f"2x{device.name.partition(',')[0]}").device == device
    assert {find(kind) for kind in TPUS.values()} == {device for _, device in DEVICES if device.torus}
    assert (parse_chips("tpu7x:2x2x2").count, parse_chips("tpu7x:2x2x2").num_devices) == (8, 16)


def test_rules_give_what_their_authors_chose() -> None:
    # DeepSeek LLM 7B: 2304 sequences of 4096, rate 4.2e-4, 2e12 tokens (arXiv 2401.02954, tables 2 and eq. 2).
    compute = (72 * 30 * 4096**2 + 12 * 30 * 4096 * 4096) * 2e12
    assert batch_tokens_for(compute) == pytest.approx(2304 * 4096, rel=0.05)
    assert learning_rate_for(compute) == pytest.approx(4.2e-4, rel=0.05)


def test_tokens_are_read_as_people_write_them() -> None:
    assert [parse_tokens(words) for words in ("3e12", "40B", "1.5T", "200M")] == [3e12, 40e9, 1.5e12, 200e6]


@pytest.mark.slow
def test_the_first_recipe_can_be_compiled(small: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("looplm.plan.command.described_devices", lambda words: jax.devices()[:4])
    found = make_plan("small", small, "v5e:2x2", Wish(compile=True))
    assert found.compiled is not None
    assert found.compiled.mesh == {axis: size for axis, size in found.best.recipe.mesh.items() if size > 1}
    assert found.compiled.remat == found.best.recipe.form.remat
    assert json.loads(json.dumps(found.as_json()))["compiled"]["num_params"] == found.num_params
    console = Console(file=io.StringIO())
    print_plan(found, console)
    assert "compiled: " in console.file.getvalue()  # type: ignore[attr-defined]
