"""KV policies are measured as text is written under them, and remembered for who writes it."""

import jax
import numpy as np
import pytest

from looplm.errors import UserError
from looplm.eval.kv import score_policy
from looplm.eval.texts import Texts, _spread
from looplm.infer.generate import generate
from looplm.infer.lossy import LARGE, check_kv
from looplm.metrics.kv_loss import KVLosses, KVPolicyLoss
from looplm.model.functional import FunctionalLM
from tests.eval.test_exits import CONFIG, R, passed  # noqa: F401

PROMPT, WRITTEN = 6, 8


@pytest.fixture(scope="module")
def lm():
    lm = FunctionalLM(CONFIG)
    return lm, lm.init(jax.random.key(3))


def text_of(tokens, prompt):
    labels = np.append(tokens[1:], -100)
    return Texts(*(np.int32([x]) for x in (tokens, labels, len(tokens), prompt, 0)))


@pytest.mark.parametrize(
    ("kv", "exit"),
    [
        ("last", None),
        pytest.param("ring:2,int8", None, marks=pytest.mark.slow),
        pytest.param("ragged", "gate:0.6", marks=pytest.mark.slow),
    ],
)
def test_given_what_a_policy_writes_it_is_what_the_policy_would_write(kv, exit, lm):
    from looplm.infer.exit_rule import parse_exit

    prompt = np.random.default_rng(2).integers(0, 29, PROMPT)
    (row,) = generate(*lm, [prompt], num_loops=R, exit=parse_exit(exit, CONFIG), kv=kv, max_tokens=WRITTEN, num_ids=29)
    whole = np.concatenate([prompt, row.tokens])
    found = score_policy(*lm, text_of(whole, PROMPT), R, kv, exit)
    np.testing.assert_array_equal(found.best_NS[0, : WRITTEN - 1], row.tokens[1:])
    np.testing.assert_array_equal(found.loops_NS[0, : WRITTEN - 1], row.loops[1:])
    other = score_policy(*lm, text_of(whole, PROMPT), R, "each", None)
    assert np.abs(other.nll_NS - found.nll_NS).max() > 1e-3, "the policy is seen"


def test_each_gives_the_losses_of_whole_sequences(lm, passed):  # noqa: F811
    _, params, batch, _, scores = passed
    tokens, labels = batch["tokens"], batch["labels"]
    texts = Texts(tokens, labels, np.full(6, 20), np.array([5, 6, 7, 8, 9, 19]), np.arange(6))
    found = score_policy(lm[0], params, texts, R, "each", None)
    for row, prompt in enumerate(texts.prompt_N):
        expected = scores.nll_RBS[R - 1, row, prompt:]
        np.testing.assert_allclose(found.nll_NS[row, : 20 - prompt], expected, rtol=1e-4, atol=1e-4)
        assert not found.nll_NS[row, 20 - prompt :].any()
    assert texts.scored_NS.sum(axis=1).tolist() == [14, 13, 12, 11, 10, 0]


def losses(tmp_path, **changes):
    policies = [
        KVPolicyLoss(
            policy=policy, loss=2 + change, change=change, change_low=change - 0.01, change_high=change + 0.01,
            agreement=0.9, mean_depth=R, bytes_per_token=8, share=0.5,
        )
        for policy, change in changes.items()
    ]  # fmt: skip
    record = KVLosses(step=3, data="text", num_tokens=9, num_documents=3, num_loops=R, loss=2.0, policies=policies)
    return record.save(tmp_path / "run" / "eval", "kv")


def test_a_policy_that_was_found_to_cost_much_is_refused(tmp_path, capsys):
    file = losses(tmp_path, last=0.4, first=LARGE)
    for text in ("last", "single"):
        with pytest.raises(UserError, match=rf"^kv={text} costs this checkpoint 0.400 nats .* --allow-lossy-kv"):
            check_kv(text, R, np.float32, file)
        check_kv(text, R, np.float32, file, allow=True)
    check_kv("anchor:1", R, np.float32, file)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("text", ["ring:2", "each,int8", "ragged,bf16"])
def test_what_was_never_measured_is_told(text, tmp_path, capsys):
    file = losses(tmp_path, last=0.4)
    check_kv(text, R, np.float32, file)
    told = (
        f"looplm: what kv={text} costs was never measured on this checkpoint; `looplm eval {tmp_path}/run --kv {text}`"
    )
    assert capsys.readouterr().err.startswith(told)


@pytest.mark.parametrize("text", [None, "each", "ragged", "ring:9", f"anchor:{R}"])
def test_policies_that_keep_everything_need_no_measurement(text, tmp_path, capsys):
    check_kv(text, R, np.float32, tmp_path / "eval" / "kv-3.json")
    assert capsys.readouterr().err == ""


def test_texts_are_of_all_documents_before_any_has_a_second():
    found = [(np.zeros(length), np.zeros(length), 4, document) for length, document in ((9, 0), (9, 0), (8, 1), (9, 1))]
    chosen = [(len(tokens), document) for tokens, _, _, document in _spread(found)]
    assert chosen == [(9, 0), (9, 1), (9, 0), (8, 1)]
