"""Generation with a cache writes the tokens that the authors' code writes (tests/golden/*/README.md)."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing

import looplm
from looplm.config.schema import ZeroState
from looplm.errors import UserError
from looplm.infer.cache import new_cache, parse_policy
from looplm.infer.exit_rule import parse_exit
from looplm.infer.generate import generate
from looplm.model.context import Context
from looplm.model.depth import Depth
from looplm.model.forward import Forward
from looplm.model.functional import FunctionalLM
from looplm.ops.attention import cached_mask

GOLDEN = Path(__file__).parents[1] / "golden"
OFFICIAL = {name: json.loads((GOLDEN / name / "generation.json").read_text()) for name in ("ouro_a", "huginn_a")}
"""By the number of loops, or the exit rule."""


@pytest.fixture(scope="module")
def ouro():
    return looplm.load(GOLDEN / "ouro_a")


@pytest.fixture(scope="module")
def huginn():
    return looplm.load(GOLDEN / "huginn_a")


@pytest.fixture(scope="module")
def arrays():
    return {name: dict(np.load(GOLDEN / name / "io.npz")) for name in OFFICIAL}


def written(model, params, prompts_BS, num_loops, exit_rule=None, kv=None):
    """The greedy continuation, 24 tokens."""
    rows = generate(
        FunctionalLM(model), params, list(prompts_BS), num_loops=num_loops,
        exit=parse_exit(exit_rule, model), kv=kv,
        max_tokens=24, temperature=0.0, seed=0, end_ids=[], num_ids=model.vocab_size,
    )  # fmt: skip
    return np.stack([row.tokens for row in rows])


def depths(name, *quick):
    """All that are recorded; some in the default suite."""
    return [pytest.param(depth, marks=[] if depth in quick else pytest.mark.slow) for depth in OFFICIAL[name]]


@pytest.mark.parametrize("depth", depths("ouro_a", "4", "gate:0.5"))
def test_ouro_writes_the_official_tokens(ouro, arrays, depth):
    rule = depth if ":" in depth else None
    num_loops = 4 if rule else int(depth)
    # The official code runs all loops whoever has left.
    ids_BM = written(ouro.model, ouro.params, arrays["ouro_a"]["gen_prompt"], num_loops, rule, kv="each")
    np.testing.assert_array_equal(ids_BM, OFFICIAL["ouro_a"][depth])


@pytest.mark.parametrize("depth", depths("huginn_a", "5"))
def test_huginn_writes_the_official_tokens_from_zero_states(huginn, arrays, depth):
    model = huginn.model.model_copy(update={"state_init": ZeroState()})
    ids_BM = written(model, huginn.params, arrays["huginn_a"]["gen_prompt"], int(depth))
    np.testing.assert_array_equal(ids_BM, OFFICIAL["huginn_a"][depth])


@pytest.mark.parametrize(("kv", "stored"), [("each", "latest-m4"), ("ragged", "latest-m4"), ("last", "compress-s4")])
def test_huginn_writes_the_official_tokens_with_shared_keys(huginn, arrays, monkeypatch, kv, stored):
    """The official names count layers, of which the block has 4: `compress-s4` keeps one loop of a token."""
    states_BTD = jnp.asarray(arrays["huginn_a"]["gen_states"])

    def given_states(*_, context, **__):
        return jnp.take_along_axis(states_BTD, context.positions_BS[:, :, None], axis=1, mode="clip")

    monkeypatch.setattr("looplm.model.core.initial_state", given_states)
    prompts_BP = arrays["huginn_a"]["gen_prompt"]
    ids_BM = written(huginn.model, huginn.params, prompts_BP, 5, kv=kv)
    expected_BM = arrays["huginn_a"][f"gen_ids_{stored}"][:, prompts_BP.shape[1] :]
    np.testing.assert_array_equal(ids_BM[:, : expected_BM.shape[1]], expected_BM)


def test_the_tokens_that_came_with_the_fixtures_are_the_first_of_these(arrays):
    for name, depth, stored in (("ouro_a", "4", "gen_ids"), ("huginn_a", "5", "gen_zero_state_ids")):
        length = arrays[name]["gen_prompt"].shape[1]
        np.testing.assert_array_equal(np.array(OFFICIAL[name][depth])[:, :16], arrays[name][stored][:, length:])


@pytest.mark.parametrize(
    ("name", "num_loops", "stored", "states"),
    [
        ("ouro_a", 4, "gen", None),
        ("huginn_a", 5, "gen", "gen_states"),
        ("huginn_a", 5, "gen_zero_state", "zeros"),
    ],
)
def test_logits_of_every_written_token(arrays, ouro, huginn, name, num_loops, stored, states):
    """One pass over the whole text gives the logits that the official code gave token by token."""
    lm, official = (ouro if name == "ouro_a" else huginn), arrays[name]
    ids_BS = official[f"{stored}_ids"]
    given = {None: None, "zeros": np.zeros((*ids_BS.shape, lm.model.dim))}.get(states, official.get(states))
    logits_BSV = lm(ids_BS, num_loops=num_loops, initial_state=given).logits(num_loops)
    first = official["gen_prompt"].shape[1] - 1
    np.testing.assert_allclose(jnp.moveaxis(logits_BSV, 0, 1)[first:-1], official[f"{stored}_logits"], atol=5e-5)
    np.testing.assert_array_equal(jnp.argmax(logits_BSV, axis=-1)[:, first:-1], ids_BS[:, first + 1 :])


def test_ouro_cache_holds_the_official_keys_and_values(ouro, arrays):
    """Slot = loop * L + layer; keys after the rotation."""
    tokens_BS = jnp.asarray(arrays["ouro_a"]["input_ids"])
    size, length = tokens_BS.shape
    positions_BS = jnp.broadcast_to(jnp.arange(length), tokens_BS.shape)
    cache = new_cache(ouro.model, batch_size=size, length=length, policy=parse_policy("each", 4), dtype=jnp.float32)
    context = Context(positions_BS, cached_mask(ouro.model, positions_BS, length))
    model = ouro.functional.bind(ouro.params)
    block = jax.jit(lambda: Forward(model, tokens_BS, context, Depth(4), jnp.float32, cache=cache)().cache.block)()
    for ours_RLBKTH, name in ((block.keys, "prefill_k_cache"), (block.values, "prefill_v_cache")):
        slots = ours_RLBKTH.numbers.reshape(-1, *ours_RLBKTH.numbers.shape[2:])
        np.testing.assert_allclose(slots, arrays["ouro_a"][name], atol=3e-5)


PROMPT = "one two"


@pytest.fixture(scope="module")
def with_tokenizer(tmp_path_factory):
    """The official folder with a tokenizer of its own: words, and a mark that the library puts before a text."""
    folder = tmp_path_factory.mktemp("official") / "ouro"
    shutil.copytree(GOLDEN / "ouro_a", folder)
    words = ["<|begin|>", "<|turn|>", *(f"word{i}" for i in range(146)), "one", "two", "three"]
    rules = tokenizers.Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="one"))
    rules.pre_tokenizer = WhitespaceSplit()
    rules.add_special_tokens(["<|begin|>", "<|turn|>"])
    rules.post_processor = TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", 0)])
    rules.save(str(folder / "tokenizer.json"))
    return folder


def test_an_official_folder_goes_on_from_what_the_library_makes_of_a_text(with_tokenizer, command):
    """Without a run directory, and though no token ends a text."""
    lm = looplm.load(with_tokenizer)
    ids = tokenizers.Tokenizer.from_file(str(with_tokenizer / "tokenizer.json")).encode(PROMPT).ids
    assert ids == [0, 148, 149]
    (found,) = lm.generate([PROMPT], max_tokens=24)
    np.testing.assert_array_equal(found.tokens, written(lm.model, lm.params, [np.int32(ids)], 4)[0])
    shown = command("generate", with_tokenizer, "--prompt", PROMPT, "--max-tokens", 24)
    assert (shown.code, shown.stdout) == (0, f"{PROMPT}{found}\n")
    assert shown.stderr.splitlines() == ["official weights, 4 loops"]


def test_an_official_chat_begins_with_what_its_template_writes(with_tokenizer):
    turns = "{% for m in messages %}<|turn|> {{ m.content }} {% endfor %}"
    template = turns + "{% if add_generation_prompt %}<|turn|>{% endif %}"
    (with_tokenizer / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    lm = looplm.load(with_tokenizer)
    assert lm.chat.prompt([{"role": "user", "content": "two"}]).tolist() == [1, 149, 1]


def test_a_tokenizer_of_another_model_is_refused(with_tokenizer, tmp_path):
    folder = tmp_path / "other"
    shutil.copytree(with_tokenizer, folder)
    rules = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    rules.add_tokens(["four"])
    rules.save(str(folder / "tokenizer.json"))
    with pytest.raises(UserError, match=r"a prompt holds the id 151 of .*, and the model has 151"):
        looplm.load(folder).generate(["four"])


@pytest.mark.parametrize("asked", [{"step": 3}, {"ema": True}])
def test_official_weights_have_neither_steps_nor_averages(asked):
    with pytest.raises(UserError, match=r"(step=3|ema=True) needs a run of looplm"):
        looplm.load(GOLDEN / "ouro_a", **asked)
