"""A run that finds hidden tokens again: on one mesh as on another, and its evaluation against a plain definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import looplm
from looplm.config.load import override
from looplm.data.held_out import open_held_out
from looplm.data.loader import eval_batches
from looplm.errors import UserError
from looplm.eval.command import evaluate
from looplm.lm_eval.answers import Answers

MASKED = {
    "model.attention_mask": "full",
    "model.exit_gate": None,
    "model.vocab_size": 392,
    "objective": "final",
    "data.masking": {"mask_token": 384},
}


@pytest.fixture(scope="module")
def run(tiny_run):
    return tiny_run(**MASKED)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return tmp_path_factory.mktemp("masked") / "run"


@pytest.fixture(scope="module")
def trained(run, workdir, train_on):
    return train_on(run, 1, workdir)


def test_a_run_is_the_same_on_another_mesh_and_in_micro_batches(run, trained, train_on):
    split = override(run, {"mesh.data": 2, "data.accumulation_steps": 2})
    other = train_on(split, 4)
    np.testing.assert_allclose(other.column("train/loss"), trained.column("train/loss"), rtol=1e-5)


def test_an_evaluation_scores_the_hidden_tokens_alone(run, trained, workdir):
    found = evaluate(workdir, depths="1,2,3")
    lm, nll_R, right_R, scored = looplm.load(workdir), np.zeros(3), np.zeros(3), 0
    logits = jax.jit(lambda tokens, segments: [lm(tokens, segments=segments).logits(depth) for depth in (1, 2, 3)])
    held_out = open_held_out(run.data.validation, run.data)
    for batch in eval_batches(held_out.windows, batch_size=64):
        chosen_BS = batch["labels"] >= 0
        logits_RBSV = logits(jnp.asarray(batch["tokens"]), jnp.asarray(batch["segments"]))
        for loop in range(3):
            logits_NV = np.asarray(logits_RBSV[loop], np.float64)[chosen_BS]
            labels_N = batch["labels"][chosen_BS]
            normaliser_N = np.log(np.exp(logits_NV).sum(1))
            nll_R[loop] += (normaliser_N - logits_NV[np.arange(len(labels_N)), labels_N]).sum()
            right_R[loop] += (logits_NV.argmax(1) == labels_N).sum()
        scored += chosen_BS.sum()
    assert found.num_tokens == scored
    np.testing.assert_allclose(found.loss, nll_R / scored, rtol=1e-4)
    np.testing.assert_allclose(found.accuracy, right_R / scored, atol=2 / scored)
    assert found.bits_per_byte == [None] * 3


def test_such_a_model_writes_nothing_and_is_asked_for_nothing_that_follows(trained, workdir):
    lm = looplm.load(workdir)
    with pytest.raises(UserError, match=r"model\.attention_mask=full needs more of them"):
        lm.generate(["a"], max_tokens=1)
    with pytest.raises(UserError, match=r"model\.attention_mask=full sees it"):
        Answers(lm, [1], max_length=8)
