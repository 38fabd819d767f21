"""Every key of an official config.json counts, is refused, or is known not to matter; none is passed over in silence.

What a key means is compared with the authors' code (tests/golden/*/changes.npz, made by tools/golden_changes.py).
"""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import looplm
from looplm.checkpoint.adapters import KIND_KEYS, find, kind_of
from looplm.errors import UserError
from tests.checkpoint.folders import GOLDEN, config_of, folders

CONDITIONAL = {
    ("ouro", "use_sliding_window"): "layer_types gives no layer the window",
    ("ouro", "sliding_window"): "use_sliding_window is false",
    ("ouro", "max_window_layers"): "layer_types goes before it",
    ("qwen3", "use_sliding_window"): "layer_types gives no layer the window",
    ("qwen3", "sliding_window"): "use_sliding_window is false",
    ("qwen3", "max_window_layers"): "layer_types goes before it",
    ("huginn_raven", "vocab_size"): "padded_vocab_size goes before it",
    ("qwen3_moe", "sliding_window"): "use_sliding_window is false",
    ("qwen3_moe", "use_sliding_window"): "sliding_window is null",
    ("qwen3_moe", "max_window_layers"): "use_sliding_window is false",
    **{
        (kind, key): reason
        for kind in ("HierarchicalReasoningModel_ACTV1", "TinyRecursiveReasoningModel_ACTV1", "URM")
        for key, reason in (
            ("seq_len", "positions turn; those that are learned, and a mixture over places, have a size"),
            ("expansion", "the inner width of so small a model is 256 either way"),
        )
    },
}
"""Keys that matter in other configs than the fixtures'; those are in changes.npz, or below."""
NEAR = {"use_sliding_window": True, "sliding_window": 4}


def defaults(folder: Path) -> dict:
    """What keys are worth that may be missing, before what the folder says."""
    fields = find(config_of(folder)).config.model_fields
    return {field.alias or name: field.default for name, field in fields.items() if not field.is_required()}


KEYS = [(folder, key) for folder in folders() for key in defaults(folder) | config_of(folder)]
CHANGES = [(folder, name) for folder in folders() if (folder / "changes.npz").is_file()
           for name in np.load(folder / "changes.npz").files]  # fmt: skip


def understood(config: dict, allow_keys: tuple[str, ...] = ()) -> tuple:
    adapter = find(config)
    read = adapter.config.understand(config, allow_keys)
    return adapter.model(read), adapter.loop(read)


def understood_or_told(config: dict) -> tuple | str:
    try:
        return understood(config)
    except UserError as error:
        return str(error)


def another(value: object) -> object:
    """Another value that the key could have."""
    match value:
        case bool():
            new: object = not value
        case int():
            new = 1 if value < 0 else 2 * value or 1  # below 0 stands for none
        case float():
            new = value / 2 or 0.1
        case str():
            new = "another"
        case list():
            new = [another(entry) for entry in value] or [1]
        case dict():
            new = {name: another(entry) for name, entry in value.items()}
        case _:
            new = 7
    return new


@pytest.mark.parametrize(("folder", "key"), KEYS, ids=[f"{folder.name}-{key}" for folder, key in KEYS])
def test_another_value_counts_or_is_refused_or_is_known_not_to_matter(folder: Path, key: str) -> None:
    config = config_of(folder)
    adapter = find(config)
    changed = understood_or_told(config | {key: another((defaults(folder) | config)[key])})
    if isinstance(changed, str):
        assert key in changed or key in KIND_KEYS
        assert "\n" not in changed
    elif changed == understood(config):
        assert key in adapter.config.WITHOUT_EFFECT or (kind_of(config), key) in CONDITIONAL
    else:
        assert key in adapter.config.model_fields


@pytest.mark.parametrize("folder", folders(), ids=lambda folder: folder.name)
def test_no_key_is_both_read_and_without_effect_and_every_one_has_a_reason(folder: Path) -> None:
    config = find(config_of(folder)).config
    assert not set(config.model_fields) & set(config.WITHOUT_EFFECT)
    assert all(config.WITHOUT_EFFECT.values())


@pytest.mark.parametrize("folder", folders(), ids=lambda folder: folder.name)
def test_an_unknown_key_is_refused_until_it_is_allowed(folder: Path) -> None:
    config = config_of(folder)
    with pytest.raises(UserError, match=r"unknown key new_trick, .*--allow-key new_trick"):
        understood(config | {"new_trick": 3})
    assert understood(config | {"new_trick": 3}, ("new_trick",)) == understood(config)


def test_a_key_inside_a_table_is_accounted_for_too() -> None:
    config = config_of(GOLDEN / "ouro_a") | {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "mscale": 0.7}}
    with pytest.raises(UserError, match=r"--allow-key rope_scaling.mscale"):
        understood(config)
    allowed = understood(config, ("rope_scaling.mscale",))
    assert allowed == understood(config | {"rope_scaling": {"rope_type": "linear", "factor": 2.0}})


def test_what_is_known_to_ask_for_another_model_is_not_let_pass() -> None:
    with pytest.raises(UserError, match="hidden_act='gelu'"):
        understood(config_of(GOLDEN / "ouro_a") | {"hidden_act": "gelu"}, ("hidden_act",))


def made(shape: list[int]) -> np.ndarray:
    """As tools/golden_changes.py makes the tensors that no fixture has."""
    return (0.3 * np.cos(np.arange(np.prod(shape)))).reshape(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("folder", "name"), CHANGES, ids=[f"{folder.name}-{json.loads(name)['config']}" for folder, name in CHANGES]
)
def test_logits_change_as_those_of_the_official_code(folder: Path, name: str, tmp_path: Path) -> None:
    change, io = json.loads(name), np.load(folder / "io.npz")
    (tmp_path / "config.json").write_text(json.dumps(config_of(folder) | change["config"]))
    stored = load_file(folder / "model.safetensors")
    kept = {key: value for key, value in stored.items() if not key.startswith(tuple(change["gone"] or ["-"]))}
    save_file(kept | {key: made(shape) for key, shape in change["come"].items()}, tmp_path / "model.safetensors")
    lm = looplm.load(tmp_path)
    start = io["init_state"][:1] if "init_state" in io.files else None
    logits = jax.jit(lambda tokens_BS: lm(tokens_BS, initial_state=start).logits(lm.loop.num_loops))(
        io["input_ids"][:1]
    )
    np.testing.assert_allclose(logits[0], np.load(folder / "changes.npz")[name], atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(layer_types=["full_attention", "sliding_attention", "full_attention"]), r"1 of 3 layers \(1\)"),
        (dict(layer_types=None, max_window_layers=1), r"max_window_layers=1 gives 2 of 3 layers \(1, 2\)"),
        (dict(layer_types=["sliding_attention"] * 3, use_sliding_window=False), "give it no size"),
        (dict(layer_types=["chunked_attention"] * 3), "layer_types='chunked_attention'"),
        (dict(layer_types=["sliding_attention"] * 2), "2 entries for num_hidden_layers=3"),
    ],
)
def test_windows_of_some_layers_are_refused(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        understood(config_of(GOLDEN / "ouro_a") | NEAR | change)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("ouro_a", {"early_exit_threshold": 0.5}, "early_exit_threshold=0.5: .*gate:0.5"),
        ("ouro_a", {"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}}, "rope_theta is 5.0 and 1000000.0"),
        (
            "ouro_a",
            {
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 4.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 64,
                }
            },
            "low_freq_factor=4.0 is not below high_freq_factor=4.0",
        ),
        (
            "ouro_a",
            {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
            "'dynamic' is not known.*'linear', 'llama3'",
        ),
        (
            "llama_a",
            {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
            "has no rope_scaling.original_max_position",
        ),
        ("llama_a", {"mlp_bias": True}, "mlp_bias=True: looplm computes False only"),
        ("nanbeige_a", {"loop_share_kv": True}, "loop_share_kv=True"),
        ("nanbeige_a", {"kv_channels": 32}, "kv_channels=32: in a Nanbeige it is head_dim, 16"),
        ("ouro_a", {"rope_scaling": {"rope_type": "linear"}}, "has no rope_scaling.factor"),
        ("qwen3moe_a", NEAR | {"max_window_layers": 2}, "max_window_layers=2"),
        ("huginn_a", {"num_attention_heads": 2}, "n_heads=4: in a Huginn it is num_attention_heads, 2"),
        ("huginn_a", {"injection_type": "add", "bias": True}, "bias=True is the adapter's"),
        ("huginn_a", {"nonlin_name": "GELU"}, "nonlin_name='GELU': looplm computes 'SiLU' only"),
        ("parcae_a", {"rope_settings": {"rope_base": 10_000}}, "rope_settings.rope_base=10000"),
        ("parcae_a", {"recurrent_iteration_method": "per-token"}, "recurrent_iteration_method='per-token'"),
    ],
)
def test_what_no_model_of_looplm_computes_is_refused_by_name(name: str, change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        understood(config_of(GOLDEN / name) | change)


def test_keys_that_are_missing_are_told_once_with_the_remedy() -> None:
    config = config_of(GOLDEN / "ouro_a")
    del config["hidden_size"], config["num_attention_heads"]
    with pytest.raises(UserError) as refusal:
        understood(config)
    assert str(refusal.value) == (
        "has no hidden_size, num_attention_heads, which its kind of model needs; download it again"
    )


def test_rotary_settings_in_the_layout_of_transformers_5() -> None:
    config = config_of(GOLDEN / "ouro_a")
    table = {"rope_type": "default", "rope_theta": config.pop("rope_theta")}
    assert understood(config | {"rope_parameters": table}) == understood(config_of(GOLDEN / "ouro_a"))


def test_a_first_state_is_drawn_as_the_stored_deviation_says() -> None:
    config = config_of(GOLDEN / "huginn_a")
    model, _ = understood(config | {"init_values": {"std": 0.5}})
    assert model.state_init.std == pytest.approx(0.5 * 32**0.5)
    for zero in ({"init_values": {"std": 0.0}}, {"state_init": "zero"}):
        assert understood(config | zero)[0].state_init.kind == "zeros"
