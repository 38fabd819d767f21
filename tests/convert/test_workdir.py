"""A run that was imported is a run: it is scored, writes, is reported on and trained on; a trained one is exported."""

import json

import jax
import numpy as np
import pytest

import looplm
from looplm.checkpoint.hf_folder import HFFolder
from looplm.checkpoint.seal import read_seal
from looplm.config.load import from_json
from looplm.convert.from_folder import architecture, expanded
from looplm.errors import UserError
from tests.checkpoint.folders import config_of
from tests.convert.folders import copy_of

OURO = {"model.norm_placement": "sandwich", "model.norm_at_loop_end": True, "model.final_norm": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_run, write_config, command):
    """A folder with `trained`, a run of a model that Ouro's code could compute, and `hf`, what was exported of it."""
    folder = tmp_path_factory.mktemp("cycle")
    config = write_config(folder, tiny_run(**OURO))
    assert command("train", config, "--workdir", folder / "trained").code == 0
    shown = command("convert", "export", folder / "trained", folder / "hf")
    assert shown.code == 0, shown.stderr
    assert "ouro, step 3" in shown.stdout
    return folder


@pytest.fixture(scope="module")
def imported(folder, command):
    shown = command("convert", "import", folder / "hf", folder / "run")
    assert shown.code == 0, shown.stderr
    return folder / "run"


def test_a_trained_run_is_exported_with_its_weights_and_its_tokenizer(folder):
    run, official = looplm.load(folder / "trained"), HFFolder(folder / "hf")
    assert official.stored_config["total_ut_steps"] == 3
    jax.tree.map(np.testing.assert_array_equal, run.params, official.params(official.model(), np.float32))
    assert (folder / "hf" / "tokenizer.model").read_bytes() == (folder / "trained" / "tokenizer.model").read_bytes()
    card = (folder / "hf" / "README.md").read_text()
    assert "3 of 3 steps of 128 tokens in windows of 16" in card
    assert "objective: `expected`" in card


def test_it_is_scored_as_the_run_that_it_was(folder, imported, tiny_data, command):
    assert command("eval", folder / "trained", "--out", folder / "first.json").code == 0
    shown = command("eval", imported, "--data", tiny_data / "validation", "--out", folder / "second.json")
    assert shown.code == 0, shown.stderr
    first, second = (json.loads((folder / f"{name}.json").read_text()) for name in ("first", "second"))
    assert (second["depths"], second["num_tokens"], second["step"]) == ([1, 2, 3], first["num_tokens"], 0)
    np.testing.assert_allclose(second["loss"], first["loss"], rtol=1e-5)
    assert command("report", imported).code == 0
    assert "It was imported, runs 3 loops, and was not trained here." in (imported / "report.html").read_text()


def test_it_writes_as_the_folder_does(folder, imported, command):
    texts = [command("generate", place, "--prompt", "def", "--max-tokens", 8) for place in (folder / "hf", imported)]
    assert [text.code for text in texts] == [0, 0]
    assert texts[0].stdout == texts[1].stdout


def test_it_is_trained_on_in_its_place_or_elsewhere(folder, imported, tiny_run, config_file, tmp_path, command):
    """With the architecture from the folder: the config's own is another one."""
    config = config_file(tiny_run(**{"model.dim": 32, "loop.num_loops": 2, "optim.learning_rate": 1e-3}))
    elsewhere = tmp_path / "elsewhere"
    shown = command("train", config, "--workdir", elsewhere, "--set", f"model=from:{imported}")
    assert shown.code == 0, shown.stderr
    assert f"starting from the weights of {imported} after step 0" in shown.stdout
    run = from_json(elsewhere / "config.json")
    assert (run.model, run.loop.num_loops) == (looplm.from_folder(folder / "hf"), 3)

    shown = command("train", config, "--workdir", imported, "--set", f"model=from:{imported}")
    assert shown.code == 0, shown.stderr
    assert f"starting from the weights of {imported} after step 0" in shown.stdout
    seals = [read_seal(place / "checkpoints" / "3") for place in (imported, elsewhere)]
    assert seals[0].arrays == seals[1].arrays  # the same batches from the same weights, to the bit
    shown = command("train", config, "--workdir", imported, "--set", f"model=from:{imported}")
    assert "nothing to do: step 3 of 3 is done" in shown.stdout
    assert command("convert", "export", imported, tmp_path / "again").code == 0
    assert config_of(tmp_path / "again")["model_type"] == "ouro"


def test_a_second_source_of_first_weights_is_refused(folder, imported, tiny_run, config_file, tmp_path, command):
    assert command("convert", "import", folder / "hf", tmp_path / "run").code == 0
    config = config_file(tiny_run(**OURO))
    shown = command("train", config, "--workdir", tmp_path / "run", "--set", f"init_from={folder / 'hf'}")
    assert shown.code == 2
    assert "holds the weights of an imported model (step 0); leave init_from out" in shown.stderr


def test_what_set_says_goes_before_what_the_folder_says(tmp_path):
    folder = copy_of("ouro_a", tmp_path / "hf")
    model, _ = architecture(folder)
    fields = [f"model.{key}={json.dumps(value)}" for key, value in model.model_dump(mode="json").items()]
    fields.remove("model.adapter=null")  # what the config has stays
    found = expanded([f"model=from:{folder}", "model.norm_eps=0.1"])
    assert found == [*fields, "loop.num_loops=4", f"init_from={folder}", "model.norm_eps=0.1"]
    found = expanded(["loop.num_loops=9", "init_from=null", f"model=from:{folder}"])
    assert found == ["loop.num_loops=9", "init_from=null", *fields]


@pytest.mark.parametrize(("text", "message"), [("model=from:", "names no folder"), ("model=from:nowhere", "nowhere")])
def test_a_folder_that_is_none_is_named(text, message):
    with pytest.raises(UserError, match=message):
        expanded([text])
