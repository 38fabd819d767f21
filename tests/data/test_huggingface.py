"""Tokenizers of the `tokenizers` library, against the library itself."""

import json
import pickle
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from looplm.data.dataset import TokenDataset
from looplm.data.tokenizer import Tokenizer
from looplm.data.writer import build_dataset
from looplm.errors import UserError

TEXTS = ["", "plain words", "  caf\u00e9 \u65e5\u672c \U0001f389\n\tdef f():", "a\r\nb", "x" * 5000]


def test_ids_are_those_of_the_library(hf_folder: Path) -> None:
    ours, theirs = Tokenizer.load(hf_folder), tokenizers.Tokenizer.from_file(str(hf_folder / "tokenizer.json"))
    for text, ids in zip(TEXTS, ours.encode_batch(TEXTS), strict=True):
        assert ids.tolist() == theirs.encode(text, add_special_tokens=False).ids == ours.encode(text).tolist()
        assert ours.decode(ids) == text
    assert ours.vocab_size == theirs.get_vocab_size()
    assert ours.bos_id == ours.eos_id == theirs.token_to_id("<|end|>")  # as for GPT-2
    assert ours.token_id("<|im_end|>") == theirs.token_to_id("<|im_end|>")
    assert ours.token_id("nothing") is None


def test_truncation_and_padding_of_the_file_are_not_taken(hf_folder: Path) -> None:
    rules = tokenizers.Tokenizer.from_file(str(hf_folder / "tokenizer.json"))
    plain = Tokenizer.load(hf_folder)
    rules.enable_truncation(3)
    rules.enable_padding(length=50)
    rules.save(str(hf_folder / "tokenizer.json"))
    cut = Tokenizer.load(hf_folder)
    assert cut.encode("some words in a row").tolist() == plain.encode("some words in a row").tolist()
    assert cut.fingerprint == plain.fingerprint


def test_a_text_cannot_name_special_tokens_and_a_template_can(hf_folder: Path) -> None:
    tokenizer = Tokenizer.load(hf_folder)
    ids = tokenizer.encode("a<|end|>b")
    assert tokenizer.eos_id not in ids
    assert tokenizer.decode(ids) == "a<|end|>b"
    assert tokenizer.encode_template("<|end|>b").tolist()[0] == tokenizer.eos_id


def test_pieces_are_the_text(hf_folder: Path) -> None:
    tokenizer = Tokenizer.load(hf_folder)
    text = "  def f(x):\n\treturn  x"
    assert "".join(tokenizer.pieces(tokenizer.encode(text))) == text
    assert tokenizer.pieces([tokenizer.eos_id]) == ["<|end|>"]
    with pytest.raises(UserError, match=r"token id 400 .* 400 pieces"):
        tokenizer.decode([400])


def test_names_may_be_given(hf_folder: Path) -> None:
    tokenizer = Tokenizer.load(hf_folder / "tokenizer.json", bos="<|im_start|>", eos="<|im_end|>")
    assert [tokenizer.bos_id, tokenizer.eos_id] == [1, 2]
    assert tokenizer.fingerprint != Tokenizer.load(hf_folder).fingerprint
    again = pickle.loads(pickle.dumps(tokenizer))
    assert (again.fingerprint, again.bos_id) == (tokenizer.fingerprint, 1)
    with pytest.raises(UserError, match=r"has no token '<s>', which is to be bos_token"):
        Tokenizer.load(hf_folder, bos="<s>")
    (hf_folder / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match="does not say which token ends a document; give --eos NAME"):
        Tokenizer.load(hf_folder)


def test_templates_know_special_tokens_by_their_names(hf_folder: Path) -> None:
    (hf_folder / "special_tokens_map.json").write_text('{"eos_token": "<|im_end|>", "pad_token": "<|end|>"}')
    config = {"bos_token": None, "unk_token": {"content": "<|im_start|>"}, "add_bos_token": True, "model_max_length": 9}
    (hf_folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.load(hf_folder)
    expected = {"eos_token": "<|im_end|>", "pad_token": "<|end|>", "unk_token": "<|im_start|>"}
    assert tokenizer.template_tokens == expected, "no bos, as in transformers"
    assert tokenizer.bos_id == tokenizer.eos_id == 2
    assert pickle.loads(pickle.dumps(tokenizer)).template_tokens == expected


def test_half_a_surrogate_is_no_text(hf_folder: Path) -> None:
    with pytest.raises(UserError, match="surrogate"):
        Tokenizer.load(hf_folder).encode("a\udce9b")


@pytest.mark.parametrize("content", ["{}", '{"model": 1}', "{broken"])
def test_a_broken_file(content: str, hf_folder: Path) -> None:
    (hf_folder / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=r"tokenizer\.json is not a tokenizer\.json of"):
        Tokenizer.load(hf_folder)


def test_broken_files_beside_it(hf_folder: Path) -> None:
    (hf_folder / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"chat_template\.jinja is not UTF-8: .*take it away"):
        Tokenizer.load(hf_folder)
    (hf_folder / "chat_template.jinja").unlink()
    (hf_folder / "tokenizer_config.json").write_text('{"eos_token": 5}')
    with pytest.raises(UserError, match="has no token 5, which is to be eos_token"):
        Tokenizer.load(hf_folder)


def test_an_older_file_of_a_template(hf_folder: Path) -> None:
    (hf_folder / "chat_template.json").write_text('{"chat_template": "{{ messages }}"}')
    assert Tokenizer.load(hf_folder).chat_template == "{{ messages }}"
    (hf_folder / "chat_template.json").write_text("{")
    with pytest.raises(UserError, match=r"chat_template\.json is not JSON: .*take it away"):
        Tokenizer.load(hf_folder)


def test_two_tokenizers_in_a_folder(hf_folder: Path, tokenizer: Tokenizer) -> None:
    (hf_folder / "tokenizer.model").write_bytes(tokenizer.path.read_bytes())
    with pytest.raises(UserError, match=r"holds two tokenizers; name .*model or .*json"):
        Tokenizer.load(hf_folder)


def test_a_dataset_made_with_it_holds_it(hf_folder: Path, emails: Path, tmp_path: Path) -> None:
    build_dataset([emails], hf_folder, tmp_path / "out")
    dataset = TokenDataset.open(tmp_path / "out")
    dataset.verify()
    tokenizer = dataset.tokenizer()
    assert tokenizer.fingerprint == Tokenizer.load(hf_folder).fingerprint
    assert {"tokenizer.json", "tokenizer_config.json"} <= {path.name for path in (tmp_path / "out").iterdir()}
    config = json.loads((tmp_path / "out/tokenizer_config.json").read_text())
    assert config == {"eos_token": {"content": "<|end|>"}}
    files = sorted(path for path in emails.rglob("*") if path.suffix in (".py", ".rst") and path.stat().st_size)
    texts = sorted(path.read_bytes().decode() for path in files)
    bounds = [int(place) for place in dataset.document_offsets]
    assert sorted(tokenizer.decode(dataset.tokens(a, b)) for a, b in pairwise(bounds)) == texts
    ends = dataset.document_offsets[1:].astype(np.int64) - 1
    assert {int(dataset.tokens(end, end + 1)[0]) for end in ends.tolist()} == {tokenizer.eos_id}
