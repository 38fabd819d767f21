import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import looplm
from looplm.config.load import from_json, leaves, load_config, override, shipped_configs, to_json
from looplm.config.schema import ConcatInjection, ExitGate, Run, UniformDepth
from looplm.errors import UserError
from tests.config.shipped import FILES, FINETUNE, FINETUNE_NAMES, NAMES

ConfigFile = Callable[[Run], Path]


@pytest.fixture
def load(tiny_run: Callable[..., Run], config_file: ConfigFile) -> Callable[..., Run]:
    """Loads the config file of the tiny run with these `--set`."""
    path = config_file(tiny_run())
    return lambda *overrides: load_config(path, overrides)


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a config file of this text."""

    def write(text: str) -> Path:
        path = tmp_path / "written.py"
        path.write_text(text)
        return path

    return write


def leaf(run: Run, key: str) -> Any:
    """The value of a key; of a section, the values of its keys that were set."""
    inside = {name[len(key) + 1 :]: value for name, value in leaves(run).items() if name.startswith(f"{key}.")}
    return {name: inside[name] for name in ("kind", "digits")} if inside else leaves(run)[key]


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("model.dim=32", 32),
        ("num_steps=1e3", 1000),
        ("optim.learning_rate=1e-4", 1e-4),
        ("optim.learning_rate=0.5", 0.5),
        ("model.tie_embeddings=true", True),
        ("optim.clip_norm=null", None),
        ("eval.depths=[1,3]", [1, 3]),
        ("data.train=some folder/of=text", "some folder/of=text"),
        ("data.train.kind=addition", "addition"),
        ('data.train={"kind": "addition", "digits": 7}', {"kind": "addition", "digits": 7}),
        ("model.norm_placement=sandwich", "sandwich"),
        (" loop.num_loops = 4", 4),
    ],
)
def test_set_reads_values(load, override: str, value: object) -> None:
    assert leaf(load(override), override.partition("=")[0].strip()) == value


def test_the_last_set_wins(load) -> None:
    assert load("model.dim=32", "model.dim=64").model.dim == 64


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.dimm=32", "model.dimm: unknown key; did you mean model.dim?"),
        ("modle.dim=32", "modle: unknown key; did you mean model?"),
        ("optim.schedule.warmup=3", "optim.schedule.warmup: unknown key; did you mean optim.schedule.warmup_steps?"),
        ("model.exit_gate.zzz=1", "model.exit_gate.zzz: unknown key; model.exit_gate has initial_exit_probability"),
        ("model.dim.x=3", "model.dim is a value, not a section; set it as --set model.dim=..."),
        ("model.dim", "--set 'model.dim' is not of the form key=value, e.g. --set loop.num_loops=8"),
        ("=3", "--set '=3' is not of the form key=value, e.g. --set loop.num_loops=8"),
    ],
)
def test_a_wrong_key_names_the_right_one(load, override: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        load(override)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.dim=abc", "model.dim='abc': input should be a valid integer"),
        ("model.dim=32.5", "model.dim=32.5: input should be a valid integer"),
        ("model.dim=null", "model.dim=None: input should be a valid integer"),
        ("model.dim=-1", "model.dim=-1: input should be greater than 0"),
        ("model=3", "model=3 is a section and no value; it has vocab_size, dim"),
        (
            "model.norm_placement=middle",
            "model.norm_placement='middle': input should be 'pre', 'sandwich', 'sandwich_sum', 'peri', 'post' or "
            "'output'",
        ),
        ("model.injection=gated", "model.injection='gated' is not known; use 'none', 'add', "),
        ("model.exit_gate.initial_exit_probability=2", "model.exit_gate.initial_exit_probability=2: input should be"),
        ("optim.optimizer.beta1=7", "optim.optimizer.beta1=7: input should be less than or equal to 1"),
        ("optim.clip_norm=Infinity", "optim.clip_norm=inf: input should be a finite number"),
        ("optim.learning_rate=NaN", "optim.learning_rate=nan: input should be"),
        ("eval.depths=[2,0]", "eval.depths.1=0: input should be greater than 0"),
        ("loop.depth=uniform", "loop.depth.max_loops is missing; UniformDepth requires it"),
        ("data.train=5", "data.train=5: input should be a valid string"),
        ('data.train={"kind": "sum"}', "data.train='sum' is not known; use 'p_hop', "),
        ('data.train={"kind": "addition", "digits": 0}', "data.train.digits=0: input should be greater than 0"),
        ('data.train=[{"name": "a b", "data": "x"}]', "data.train.0.name='a b': string should match pattern"),
        ('data.train=[{"name": "a", "data": "x", "weight": -1}]', "data.train.0.weight=-1: input should be greater"),
        ('data.train=[{"name": "a", "weight": 1}]', "data.train.0.data is missing; Source requires it"),
        (
            'data.train=[{"name": "a", "data": {"kind": "addition", "digit": 1}}]',
            "data.train.0.data.digit: unknown key; did you mean data.train.0.data.digits?",
        ),
    ],
)
def test_a_wrong_value_names_key_value_and_expectation(load, override: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        load(override)
    assert str(error.value).startswith(message)


def test_all_wrong_values_are_told_at_once(load) -> None:
    with pytest.raises(UserError, match=r"model\.vocab_size='x'.*; model\.dim=-3"):
        load("model.dim=-3", "model.vocab_size=x")


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.injection=concat", "model.injection.init=state"],
        ["model.injection.kind=concat", "model.injection.init=state"],
        ['model.injection={"kind": "concat", "init": "state"}'],
    ],
)
def test_a_variant_is_chosen_by_name_kind_or_section(load, overrides: list[str]) -> None:
    assert load(*overrides).model.injection == ConcatInjection(init="state")


def test_another_variant_drops_the_fields_of_the_first(load) -> None:
    run = load("model.injection=concat", "model.injection.init=state", "model.injection.kind=add")
    assert leaf(run, "model.injection.kind") == "add"
    assert "model.injection.init" not in leaves(run)


def test_a_field_of_another_variant_is_unknown(load) -> None:
    with pytest.raises(UserError, match=r"objective\.entropy_weight: unknown key; did you mean|objective has kind"):
        load("objective=final", "objective.entropy_weight=0.1")


@pytest.mark.parametrize(
    ("override", "probability"),
    [("model.exit_gate={}", 0.05), ("model.exit_gate.initial_exit_probability=0.1", 0.1)],
)
def test_setting_an_absent_section_switches_it_on(load, override: str, probability: float) -> None:
    assert load("objective=final", "model.exit_gate=null").model.exit_gate is None
    run = load("objective=final", "model.exit_gate=null", override)
    assert run.model.exit_gate == ExitGate(initial_exit_probability=probability)


def test_override_takes_python_values(tiny_run) -> None:
    run = override(tiny_run(), {"loop.depth": UniformDepth(max_loops=2), "model.exit_gate": ExitGate(), "seed": 7})
    assert (run.loop.depth.max_loops, run.seed) == (2, 7)
    assert tiny_run().seed == 0


def test_a_missing_file_names_where_configs_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.py does not exist; the shipped ones are albert, coconut, "):
        load_config(tmp_path / "nowhere.py")
    with pytest.raises(UserError, match="is a folder"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n", r"defines no function `config`; it must hold `def config\(\) -> Run`"),
        ("config = 3\n", "defines no function `config`"),
        ("def config():\n    return {}\n", r"config\(\) returned dict, not a Run"),
        ("def config(size):\n    return size\n", "line 1: TypeError: .*missing 1 required positional argument: 'size'"),
        ("def config():\n    pass\n\ndef f(:\n    pass\n", "line 4: SyntaxError: "),
        ("import json\nimport nosuchmodule\n", "line 2: ModuleNotFoundError: No module named 'nosuchmodule'"),
        ("def config():\n    x = 1\n    return y\n", "line 3: NameError: name 'y' is not defined"),
        ("def config():\n    raise ValueError('one\\ntwo')\n", "line 2: ValueError: one two"),
        (
            "from looplm.config.schema import Loop\nloop = Loop(num_lops=3)\n",
            "num_lops: unknown key; did you mean num_loops",
        ),
        ("from looplm.config.schema import Loop\ndef config():\n    return Loop()\n", "num_loops is missing; Loop"),
    ],
)
def test_a_broken_file_is_named_with_what_is_wrong(written, text: str, message: str) -> None:
    path = written(text)
    with pytest.raises(UserError, match=message) as error:
        load_config(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_json_round_trip(load, tmp_path: Path) -> None:
    run = load("loop.depth=uniform", "loop.depth.max_loops=3", "model.injection=concat", "optim.learning_rate=1e-5")
    path = tmp_path / "config.json"
    path.write_text(to_json(run))
    assert from_json(path) == run


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{", r"config\.json is not valid JSON"),
        (b"\xff", r"config\.json is not valid JSON"),
        (b'{"seed": 1, "sed": 2}', r"sed: unknown key; did you mean seed\?"),
        (b"[]", "is a section and no value; it has seed, num_steps"),
    ],
)
def test_a_broken_json_is_refused(tmp_path: Path, text: bytes, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(text)
    with pytest.raises(UserError, match=message):
        from_json(path)


def test_a_missing_json_asks_for_a_run_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path, tmp_path / "file"):
        with pytest.raises(UserError, match=r"config\.json does not exist; is .* a run directory of `looplm train`\?"):
            from_json(folder / "config.json")


@pytest.mark.parametrize("name", NAMES + FINETUNE_NAMES)
def test_shipped_configs_load_and_round_trip(name: str, tmp_path: Path) -> None:
    run = load_config(name)
    (tmp_path / "config.json").write_text(to_json(run))
    assert from_json(tmp_path / "config.json") == run


@pytest.mark.parametrize("path", FILES + FINETUNE, ids=lambda path: path.stem)
def test_shipped_configs_are_short_and_say_how_to_run_them(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 100
    assert f"configs/{path.relative_to(shipped_configs())}" in text.split('"""')[1]


def test_config_comes_without_jax() -> None:
    code = "import sys, looplm.config.load, looplm.config.check; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(looplm.__file__).parents[1])
