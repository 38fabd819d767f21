"""A tokenizer goes along with all that is said of it, and comes back after a training that knew less."""

import json

import pytest
import tokenizers
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing

import looplm
from looplm.checkpoint.lineage import OFFICIAL, kept_files
from looplm.config.load import from_json
from looplm.data.tokenizer import Tokenizer
from tests.convert.folders import copy_of

TURNS = "{% for m in messages %}<|turn|> {{ m.content }} {% endfor %}{% if add_generation_prompt %}<|turn|>{% endif %}"
SAID = {
    "chat_template": TURNS,
    "eos_token": "<|end|>",
    "tokenizer_class": "PreTrainedTokenizerFast",
    "model_max_length": 9,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An official folder with a tokenizer: words, a mark that begins a text, a chat template."""
    folder = copy_of("ouro_a", tmp_path_factory.mktemp("with_tokenizer") / "hf", eos_token_id=2)
    words = ["<|begin|>", "<|turn|>", "<|end|>", *(f"word{i}" for i in range(145)), "one", "two"]
    rules = tokenizers.Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="one"))
    rules.pre_tokenizer = WhitespaceSplit()
    rules.add_special_tokens(["<|begin|>", "<|turn|>", "<|end|>"])
    rules.post_processor = TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", 0)])
    rules.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(SAID))
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": "<|end|>"}))
    return folder


@pytest.fixture(scope="module")
def run(folder, command):
    shown = command("convert", "import", folder, folder.with_name("run"))
    assert shown.code == 0, shown.stderr
    assert "tokenizer: tokenizer.json, tokenizer_config.json, special_tokens_map.json" in shown.stdout
    return folder.with_name("run")


def test_prompts_and_chats_of_the_run_are_those_of_the_folder(folder, run):
    official, imported = looplm.load(folder), looplm.load(run)
    chat = [{"role": "user", "content": "two"}]
    assert imported.chat.prompt(chat).tolist() == official.chat.prompt(chat).tolist() == [1, 149, 1]
    for lm in (official, imported):
        assert lm.tokenizer.encode_prompt("one two").tolist() == [0, 148, 149]
    first, second = (lm.generate(["one two"], max_tokens=8) for lm in (official, imported))
    assert first == second
    assert from_json(run / "config.json").data.sources == ()


@pytest.mark.parametrize("source", ["hf", "run", "run/checkpoints/0"])
def test_a_training_keeps_what_its_dataset_does_not_say(folder, run, source, tmp_path, command):
    known = Tokenizer.load(folder / "tokenizer.json").files  # what a dataset keeps of it
    assert "tokenizer_class" not in json.loads(known["tokenizer_config.json"])
    tuned = tmp_path / "tuned"
    tuned.mkdir()
    for place in (folder.parent / source, None):  # a run that begins; one that goes on, when its source may be gone
        for name, data in (known | kept_files(place, tuned, known)).items():
            (tuned / name).write_bytes(data)
    kept = json.loads((tuned / "tokenizer_config.json").read_text())
    assert {key: kept[key] for key in SAID} == SAID
    assert json.loads((tuned / OFFICIAL).read_text())["eos_token_id"] == 2
    assert Tokenizer.load(tuned).fingerprint == Tokenizer.load(folder / "tokenizer.json").fingerprint


def test_of_another_tokenizer_nothing_is_kept(run, tmp_path):
    other = {"tokenizer.json": b"{}", "tokenizer_config.json": b"{}"}
    assert set(kept_files(run, tmp_path, other)) == {OFFICIAL}
    assert kept_files(None, tmp_path, other) == {}
