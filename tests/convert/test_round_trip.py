"""Official folders become runs and official folders again: the same numbers to the bit, the same model."""

import io
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console

import looplm
from looplm.checkpoint.adapters import find
from looplm.checkpoint.adapters.expressible import unsaid
from looplm.config.load import from_json
from looplm.convert.export_folder import export_run
from looplm.convert.import_folder import import_folder
from looplm.errors import UserError
from tests.checkpoint.folders import SUPPORTED, config_of, folders
from tests.convert.folders import BFLOAT16, copy_of, sharded, tensors_of

READ_ALONE = ("parcae", "moeut", "hrm", "trm", "urm", "hrm_text", "txl")
WRITTEN = tuple(system for system in SUPPORTED if system not in READ_ALONE)


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=200)


def understood(config):
    adapter = find(config)
    read = adapter.config.understand(config)
    return adapter.model(read), adapter.loop(read)


@pytest.mark.parametrize("folder", folders(*WRITTEN), ids=lambda folder: folder.name)
def test_import_then_export_is_the_identity_to_the_bit(folder, tmp_path, console, quick):
    import_folder(folder, tmp_path / "run", console)
    export_run(tmp_path / "run", tmp_path / "out", console)
    before, after = tensors_of(folder), tensors_of(tmp_path / "out")
    model, loop = understood(config_of(folder))
    if model.tie_embeddings:
        before.pop("lm_head.weight", None)
    if (table := before.pop("freqs_cis", None)) is not None:
        np.testing.assert_allclose(after["freqs_cis"], np.float32(table), atol=1e-5)
    after.pop("freqs_cis", None)
    assert set(after) == set(before)
    for name, value in before.items():
        assert after[name].dtype == value.dtype, name
        np.testing.assert_array_equal(after[name], value, err_msg=name)
    assert unsaid(model, loop, find(config_of(tmp_path / "out"))) == {}
    _, loop_again = understood(config_of(tmp_path / "out"))
    assert loop_again.num_loops == loop.num_loops


@pytest.mark.parametrize("folder", folders(*READ_ALONE), ids=lambda folder: folder.name)
def test_what_is_only_read_is_refused_by_the_settings_that_no_folder_says(folder, tmp_path, console, quick):
    import_folder(folder, tmp_path / "run", console)
    run, official = looplm.load(tmp_path / "run"), looplm.load(folder)
    jax.tree.map(np.testing.assert_array_equal, run.params, official.params)
    assert (run.model, run.loop) == (official.model, official.loop)
    with pytest.raises(UserError, match=r"cannot say model\."):
        export_run(tmp_path / "run", tmp_path / "out", console)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", [BFLOAT16, np.float16], ids=["bfloat16", "float16"])
def test_shards_of_half_the_size_stay_what_they_are(dtype, tmp_path, console, quick):
    folder = sharded(copy_of("qwen3moe_a", tmp_path / "hf"), dtype)
    import_folder(folder, tmp_path / "run", console)
    export_run(tmp_path / "run", tmp_path / "out", console)
    before, after = tensors_of(folder), tensors_of(tmp_path / "out")
    assert {name: value.tobytes() for name, value in after.items()} == {
        name: value.tobytes() for name, value in before.items()
    }
    assert config_of(tmp_path / "out")["torch_dtype"] == np.dtype(dtype).name
    assert looplm.load(tmp_path / "run").params["embedding"]["table"].dtype == np.float32


def test_the_logits_of_the_folder_and_of_the_run_are_compared_and_shown(tmp_path, command):
    folder = copy_of("nanbeige_a", tmp_path / "hf")
    shown = command("convert", "import", folder, tmp_path / "run")
    assert shown.code == 0
    assert shown.stdout.splitlines() == [
        f"{folder}: nanbeige, block of 3 layers, 2 loops, width 40, 97 tokens",
        "parity: 30 tensors are equal to the bit",
        "parity: logits of 2 x 16 fixed ids differ by 0 at most between the folder and the run",
        "tokenizer: none in the folder",
        f"wrote {tmp_path / 'run'}, a run after 0 steps",
    ]
    run = from_json(tmp_path / "run" / "config.json")
    assert (run.loop.num_loops, run.model.norm_at_loop_end, run.data.sequence_length) == (2, True, 128)
    shown = command("convert", "export", tmp_path / "run", tmp_path / "out", "--kind", "llama")
    assert shown.code == 2
    assert shown.stderr == (
        f"looplm: {tmp_path / 'run'} cannot be exported: a folder of kind 'llama' cannot say "
        "model.norm_at_loop_end=True (there False), model.final_norm=False (there True), loop.num_loops=2 (there 1); "
        "looplm reads it as it is\n"
    )
    assert command("convert", "export", tmp_path / "run", tmp_path / "out", "--dtype", "bfloat16").code == 0
    assert config_of(tmp_path / "out")["num_loops"] == 2
    assert "the block runs 2 times" in (tmp_path / "out" / "README.md").read_text()
    shown = command("convert", "export", tmp_path / "run", tmp_path / "out")
    assert shown.stderr == f"looplm: {tmp_path / 'out'} is there already; give a new folder, or remove it\n"


def test_what_changed_no_number_comes_back_as_it_was(tmp_path, console, quick):
    folder = copy_of("llama_a", tmp_path / "hf", eos_token_id=[7, 9], max_position_embeddings=4096)
    import_folder(folder, tmp_path / "run", console)
    export_run(tmp_path / "run", tmp_path / "out", console)
    written = config_of(tmp_path / "out")
    assert (written["eos_token_id"], written["max_position_embeddings"]) == ([7, 9], 4096)
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == [7, 9]


def test_a_link_to_the_run_is_no_obstacle(tmp_path, console, quick):
    import_folder(copy_of("llama_a", tmp_path / "hf"), tmp_path / "run", console)
    (tmp_path / "link").symlink_to(tmp_path / "run")
    export_run(tmp_path / "link", tmp_path / "out", console)
    assert tensors_of(tmp_path / "out").keys() == tensors_of(tmp_path / "hf").keys()


def test_two_runs_of_a_place_are_refused(tmp_path, console, quick):
    folder = copy_of("llama_a", tmp_path / "hf")
    import_folder(folder, tmp_path / "run", console)
    with pytest.raises(UserError, match="is there already; give a new folder"):
        import_folder(folder, tmp_path / "run", console)
    assert sorted(Path(tmp_path).iterdir()) == [tmp_path / "hf", tmp_path / "run"]
