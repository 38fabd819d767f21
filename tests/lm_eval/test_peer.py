"""Against the harness's own model for Hugging Face folders: `pytest -m peer tests/lm_eval`.

Needs a Python with torch, transformers and accelerate as well as lm-evaluation-harness.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing

GOLDEN = Path(__file__).parents[1] / "golden" / "llama_a"
CHARACTERS = ["<unk>", "<s>", "</s>", "\n", *map(chr, range(32, 127)), *map(chr, range(0xC0, 0xE0))]
"""As many as the model has ids: of others it would write what no tokenizer knows."""
TEMPLATE = (
    "<s>{% for m in messages %}[{{ m.role }}]{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}>{% endif %}"
)
CONTEXTS = ["", "a cat", "a cat ", "two\n", "<s>begun", "far too long for this model " * 9]
KWARGS = [{"until": ["e", "\n"], "max_gen_toks": 12}, {"until": "zz", "max_gen_toks": 5, "do_sample": False}]


def folder(path: Path, *, begins: bool) -> Path:
    """An official model with a tokenizer of characters. begins: whether it puts <s> before a text."""
    shutil.copytree(GOLDEN, path)
    tokenizer = tokenizers.Tokenizer(WordLevel({text: i for i, text in enumerate(CHARACTERS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Split(tokenizers.Regex("[\\s\\S]"), "isolated")
    tokenizer.decoder = Fuse()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    if begins:
        tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(path / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "chat_template": TEMPLATE}
    config |= {"bos_token": "<s>"} if begins else {}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


def ask(kind: str, *arguments: Any) -> Any:
    from lm_eval.api.instance import Instance

    return Instance(kind, {}, arguments, 0)


@pytest.mark.peer
@pytest.mark.parametrize("begins", [True, False])
def test_answers_are_those_of_its_own_model(tmp_path: Path, begins: bool) -> None:
    from lm_eval.models.huggingface import HFLM

    from looplm.lm_eval.model import LooplmModel

    path = folder(tmp_path / "model", begins=begins)
    theirs = HFLM(pretrained=str(path), device="cpu", dtype="float32", batch_size=4)
    own = LooplmModel(workdir=str(path), dtype="float32", batch_size=4)
    assert own.max_length == theirs.max_length == 128

    pairs = [(context, word) for context in CONTEXTS for word in (" sat", "e", " on the mat", "</s>")]
    requests = [ask("loglikelihood", *pair) for pair in pairs]
    expected, found = theirs.loglikelihood(requests), own.loglikelihood(requests)
    np.testing.assert_allclose([x[0] for x in found], [x[0] for x in expected], rtol=1e-4, atol=1e-4)
    assert [x[1] for x in found] == [bool(x[1]) for x in expected]

    if not begins:  # else it scores <s> behind <s> too
        requests = [ask("loglikelihood_rolling", text) for text in ("short", "of two stretches " * 9, "word " * 77)]
        found = own.loglikelihood_rolling(requests)
        np.testing.assert_allclose(found, theirs.loglikelihood_rolling(requests), rtol=1e-5)

    # Whether texts of a batch write <s> themselves it looks up in the first of them: those that do are asked apart.
    written = set()
    for contexts in (CONTEXTS[1:4] + CONTEXTS[5:], CONTEXTS[4:5]):
        requests = [ask("generate_until", context, given) for context in contexts for given in KWARGS]
        assert own.generate_until(requests) == theirs.generate_until(requests)
        written.update(own.generate_until(requests))
    assert len(written) > 6

    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "so"}]
    for asks, chat in ((True, messages[:1]), (False, messages)):
        text = own.apply_chat_template(chat, add_generation_prompt=asks)
        assert text == theirs.apply_chat_template(chat, add_generation_prompt=asks)
    assert own.chat_template(True) == theirs.chat_template(True) == TEMPLATE
    assert list(own.answers.encoding.beginning(text)) == theirs.tok_encode(text)
