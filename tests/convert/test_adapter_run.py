"""What becomes of an adapter: merged into the weights, or written as PEFT stores it."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import looplm
from tests.convert.adapters import adapter_run
from tests.convert.folders import GOLDEN, tensors_of


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    return adapter_run(GOLDEN / "ouro_a", folder / "run", targets=("attention", "feed_forward.down"))


@pytest.fixture(scope="module")
def merged(adapted, command):
    shown = command("adapter", "merge", adapted, adapted.parent / "merged")
    assert shown.code == 0, shown.stderr
    assert "a run after 0 steps: step 5 of" in shown.stdout
    assert "in the 5 kernels that it was beside" in shown.stdout
    return adapted.parent / "merged"


def test_a_merged_run_computes_what_the_adapted_one_did(adapted, merged):
    ids_BS = np.load(GOLDEN / "ouro_a" / "io.npz")["input_ids"][:1]

    def logits(place):
        lm = looplm.load(place)
        return np.asarray(jax.jit(lambda ids_BS: lm(ids_BS).logits(2))(ids_BS))

    found, expected, base = map(logits, (merged, adapted, GOLDEN / "ouro_a"))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())
    assert np.abs(found - base).max() > 1e-3 * np.abs(base).max()


def test_every_expert_gets_its_own_product(tmp_path, command):
    run = adapter_run(GOLDEN / "mixtral_a", tmp_path / "run", targets=("feed_forward",))
    assert command("adapter", "merge", run, tmp_path / "merged").code == 0
    before, pairs, after = (looplm.load(place).params for place in (GOLDEN / "mixtral_a", run, tmp_path / "merged"))
    old, new = (tree["core"]["block"]["layers"]["feed_forward"]["experts"] for tree in (before, after))
    adapter = pairs["core"]["block"]["layers"]["feed_forward"]["experts"]["adapter"]
    for name in ("up", "gate", "down"):
        a, b = (np.asarray(adapter[name][side], np.float64) for side in "ab")
        for expert in np.ndindex(old[name].shape[:2]):
            expected = old[name][expert] + a[expert] @ b[expert] / 3  # alpha 1, rank 3
            np.testing.assert_allclose(new[name][expert], expected, atol=1e-6)


def test_it_is_merged_once(merged, tmp_path, command):
    shown = command("adapter", "merge", merged, tmp_path / "again")
    assert shown.code == 2
    assert "has no adapter (model.adapter=null): it was trained without one, or merged already" in shown.stderr
    assert not (tmp_path / "again").exists()


def test_what_peft_gets_is_what_a_merge_adds_to_the_official_tensors(adapted, merged, tmp_path, command):
    assert command("convert", "export", merged, tmp_path / "whole", "--dtype", "float32").code == 0
    shown = command("adapter", "export", adapted, tmp_path / "peft", "--base", "ByteDance/Ouro-1.4B")
    assert shown.code == 0, shown.stderr
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["down_proj", "k_proj", "o_proj", "q_proj", "v_proj"]
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (3, 1.0, False)
    assert config["base_model_name_or_path"] == "ByteDance/Ouro-1.4B"
    pairs = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    before, after = tensors_of(GOLDEN / "ouro_a"), tensors_of(tmp_path / "whole")
    for name, value in before.items():
        module = f"base_model.model.{name.removesuffix('.weight')}"
        a, b = (pairs.pop(f"{module}.lora_{side}.weight", None) for side in "AB")
        expected = value.astype(np.float32) + (0 if a is None else (1 / 3) * b @ a)
        np.testing.assert_allclose(after[name], expected, atol=1e-6, err_msg=name)
        assert (a is not None) == name.rpartition(".")[0].endswith(tuple(config["target_modules"])), name
    assert pairs == {}


@pytest.mark.slow
def test_the_base_is_where_the_run_began(tmp_path, command):
    run = adapter_run(GOLDEN / "llama_a", tmp_path / "run", targets=("query",))
    assert command("adapter", "export", run, tmp_path / "peft").code == 0
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["q_proj"]
    assert config["base_model_name_or_path"] == str(GOLDEN / "llama_a")


@pytest.mark.parametrize(
    ("system", "fields", "words", "message"),
    [
        ("ouro_a", {"loops": 2}, "merge", "an adapter for every loop (model.adapter.loops=2), and its loops share"),
        ("ouro_a", {"optim": {"train": ("adapter", "gate")}}, "export", "trained gate.bias too (optim.train="),
        (
            "huginn_a",
            {"targets": ("attention",)},
            "export",
            "each with a pair of its own, and PEFT has one pair for it",
        ),
        ("mixtral_a", {"targets": ("feed_forward",)}, "export", "is one of many experts, which transformers holds as"),
        ("parcae_a", {"targets": ("query",)}, "export", "cannot be exported for PEFT: a folder of kind"),
    ],
)
def test_what_cannot_be_said_is_refused(system, fields, words, message, tmp_path, command):
    run = adapter_run(GOLDEN / system, tmp_path / "run", **fields)
    shown = command("adapter", words, run, tmp_path / "out")
    assert shown.code == 2
    assert message in " ".join(shown.stderr.split())
    assert not (tmp_path / "out").exists()


def test_an_adapted_run_is_no_official_model(adapted, tmp_path, command):
    shown = command("convert", "export", adapted, tmp_path / "out")
    assert shown.code == 2
    assert "has an adapter beside its weights; make one model of them with `looplm adapter merge" in shown.stderr
    shown = command("adapter", "merge", GOLDEN / "ouro_a", tmp_path / "out")
    assert "is an official model, and no run with an adapter" in shown.stderr
