"""Loops by class of token, against passes of the model alone and classes that are told token by token."""

import io
import json

import jax
import numpy as np
import pytest
from rich.console import Console

from looplm.config.schema import ACTHalting, ExitGate, Mesh
from looplm.data.dataset import TokenDataset
from looplm.data.held_out import HeldOut
from looplm.data.tokenizer import Tokenizer
from looplm.data.window import IGNORED
from looplm.errors import UserError
from looplm.eval.classes import LOSSES, check_classes, measure_classes
from looplm.eval.command import evaluate
from looplm.eval.score import Scorer
from looplm.eval.subject import Subject
from looplm.model.context import Context
from looplm.model.depth import Depth
from looplm.model.forward import Forward
from looplm.model.functional import FunctionalLM
from looplm.model.gates import log_exit_distribution
from looplm.ops.attention import self_mask
from looplm.sharding.mesh import build_mesh

R, S, ROWS, BATCHES = 3, 16, 8, 4
PARTS = {
    "halting rule": {"model.halting": ACTHalting(initial_bias=0.0), "model.exit_gate": None},
    "exit gate": {"model.exit_gate": ExitGate()},
}


def loops_of(subject, batch):
    """The loops of every token, of a pass of the model without a mesh."""
    config = subject.lm.config
    context = Context(batch["positions"], self_mask(config, batch["segments"]))
    output = Forward(subject.lm.bind(jax.device_get(subject.params)), batch["tokens"], context, Depth(R), np.float32)(
        "last"
    )
    if output.gate_logits_RBS is None:
        return np.asarray(output.halt.updates_BS)
    return np.einsum("RBS,R->BS", np.exp(log_exit_distribution(output.gate_logits_RBS)), np.arange(1, R + 1))


@pytest.fixture(params=PARTS)
def subject(request, tiny_run):
    """On two devices, the first batches of the held-out text."""
    run = tiny_run(**{"data.batch_tokens": ROWS * S, "model.init.std": 0.5, **PARTS[request.param]})
    lm, mesh = FunctionalLM(run.model), build_mesh(Mesh(data=2), jax.devices()[:2])
    layout = jax.tree.map(lambda leaf: leaf.sharding, lm.abstract(mesh))
    params = jax.tree.map(jax.device_put, lm.init(jax.random.key(1)), layout)
    held_out = HeldOut.of(TokenDataset.open(run.data.validation), S)
    return Subject(run, lm, mesh, params, 5, False, held_out, ROWS, BATCHES, None)


def test_every_token_is_counted_in_its_class(subject, tiny_data):
    tokenizer = Tokenizer.load(tiny_data / "validation")
    found = measure_classes(subject, tokenizer)
    told = {"loss of the label": {}, "tokens before the label": {}, "pieces that": {}}
    score = Scorer(subject.lm, subject.mesh, R)
    for batch in subject.held_out.batches(batch_size=ROWS, max_batches=BATCHES):
        loops_BS, nll_BS = loops_of(subject, batch), score(subject.params, batch).nll_RBS[-1]
        for row, place in np.argwhere(batch["labels"] != IGNORED):
            segments, number = batch["segments"][row], loops_BS[row, place]
            least = [0.0, *LOSSES][np.digitize(nll_BS[row, place], LOSSES)]
            before = int(np.sum(segments[: place + 1] == segments[place]))
            piece = tokenizer.pieces([batch["labels"][row, place]])[0]
            kind = (
                "digits" if piece.strip().isdigit()
                else "begin a word" if piece[:1] == " " and piece[1:2].isalpha()
                else "go on in a word" if piece[:1].isalpha()
                else "space" if piece and not piece.strip()
                else "other" if not piece or "\ufffd" in piece
                else "signs"
            )  # fmt: skip
            names = (f"from {least:g}" if least else "below 0.01", 2 ** (before.bit_length() - 1), kind)
            for classes, name in zip(told.values(), names, strict=True):
                classes.setdefault(name, []).append(number)
    every = np.concatenate([*told["pieces that"].values()])
    assert (found.num_tokens, found.mean_loops) == (len(every), pytest.approx(every.mean(), rel=1e-5))
    for classing in found.classings:
        expected = told[classing.name]
        names = [one.name for one in classing.classes]
        assert len(names) == len(expected) > 1
        for one in classing.classes:
            key = int(one.name.split()[0]) if classing.name == "tokens before the label" else one.name
            assert (one.tokens, one.loops) == (len(expected[key]), pytest.approx(np.mean(expected[key]), rel=1e-5))
            assert one.loops_low - 1e-9 <= one.loops <= one.loops_high + 1e-9


def test_a_run_keeps_and_shows_them(finished_run):
    text = io.StringIO()
    evaluate(finished_run, classes=True, out=None, console=Console(file=text, width=120))
    (path,) = (finished_run / "eval").glob("classes-*.json")
    stored = json.loads(path.read_text())
    path.unlink()
    assert stored["of"] == "exit gate"
    assert "go on in a word" in text.getvalue()
    assert f"{stored['mean_loops']:.2f} on average" in text.getvalue()


def test_a_model_whose_tokens_all_stay_is_refused(tiny_run):
    with pytest.raises(UserError, match="--classes tells which tokens"):
        check_classes(tiny_run(**{"model.exit_gate": None, "objective.kind": "final"}).model)
