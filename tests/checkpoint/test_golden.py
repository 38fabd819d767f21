"""The engine with official weights gives the official numbers, made by the authors' code (tests/golden/*/README.md).

Both are run in float32 against float32 at the tolerance named there, and in float64 at 1e-9. Other variants of Ouro,
Huginn and Parcae, in a folder that LOOPLM_GOLDEN names, are run too.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import looplm
from looplm.config.schema import ExpectedCrossEntropy, FinalCrossEntropy
from looplm.errors import UserError
from looplm.infer.exit_rule import parse_exit
from looplm.model.context import Context
from looplm.model.depth import Depth
from looplm.model.forward import Forward
from looplm.model.state_init import initial_state
from looplm.objective import build_objective
from looplm.objective.base import scoring
from looplm.ops.attention import self_mask
from tests.checkpoint.folders import GOLDEN, config_of, folders

HUGINN_DEPTHS = (1, 2, 4, 8, 16)


def variants(system):
    """A fixture that is the folder of every variant."""

    @pytest.fixture(scope="module", params=folders(system), ids=lambda folder: folder.name, name=f"{system}_folder")
    def folder(request):
        return request.param

    return folder


ouro_folder, huginn_folder, parcae_folder = variants("ouro"), variants("huginn"), variants("parcae")


@pytest.fixture(scope="module")
def ouro(ouro_folder):
    return looplm.load(ouro_folder)


@pytest.fixture(scope="module")
def ouro_io(ouro_folder):
    return arrays(ouro_folder)


@pytest.fixture(scope="module")
def huginn(huginn_folder):
    return looplm.load(huginn_folder)


@pytest.fixture(scope="module")
def huginn_io(huginn_folder):
    return arrays(huginn_folder)


@pytest.fixture(scope="module")
def parcae(parcae_folder):
    return looplm.load(parcae_folder)


@pytest.fixture(scope="module")
def parcae_io(parcae_folder):
    return arrays(parcae_folder)


def arrays(folder):
    return dict(np.load(folder / "io.npz"))


def assert_gradients(named, expected, relative):
    """Within `relative` of the largest entry of every tensor."""
    assert set(named) == set(expected)
    for name, theirs in expected.items():
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(np.asarray(named[name]) / scale, theirs / scale, atol=relative, err_msg=name)


def engine(lm, tokens_BS, num_loops, reads="all", exit_rule=None):
    """What the model itself gives, and the model."""
    model, tokens_BS = lm.functional.bind(lm.params), jnp.asarray(tokens_BS)
    positions_BS = jnp.broadcast_to(jnp.arange(tokens_BS.shape[1]), tokens_BS.shape)
    context = Context(positions_BS, self_mask(lm.model, jnp.zeros_like(tokens_BS)))
    halting = parse_exit(exit_rule, lm.model).build(model) if exit_rule else None
    return Forward(model, tokens_BS, context, Depth(num_loops), jnp.float32, halting=halting)(reads), model


def without(lm, **fields):
    """The same weights in a model with other fields; what it does not have is left over."""
    return looplm.api.LoadedLM(lm.model.model_copy(update=fields), lm.loop, lm.objective, lm.params)


def shifted(tokens_BS):
    return jnp.concatenate([tokens_BS[:, 1:], jnp.full_like(tokens_BS[:, :1], -100)], axis=1)


def test_ouro_states_gates_exits_and_logits(ouro, ouro_io):
    out = jax.jit(ouro)(ouro_io["input_ids"])
    np.testing.assert_allclose(out.hidden_RBSD, ouro_io["ut_hidden"], atol=3e-5)
    np.testing.assert_allclose(out.gate_logits_RBS, ouro_io["gate_logit"], atol=3e-5)
    np.testing.assert_allclose(jnp.moveaxis(out.exit_RBS, 0, -1), ouro_io["exit_pdf"], atol=3e-6)
    last = ouro.loop.num_loops
    for depth in range(1, last + 1):
        np.testing.assert_allclose(out.logits(depth), ouro_io["ut_logits"][depth - 1], atol=3e-5)
    np.testing.assert_allclose(out.expected_logits(), ouro_io["expected_logits"], atol=3e-5)
    np.testing.assert_allclose(jax.nn.sigmoid(out.gate_logits_RBS), ouro_io["gate_prob"], atol=3e-6)
    np.testing.assert_allclose(out.logits(last), ouro_io["last_step_logits"], atol=3e-5)


@pytest.mark.parametrize(
    ("threshold", "name"),
    [*((q, f"threshold_logits_q{q}") for q in (0.3, 0.5, 0.7, 0.9)), (1.0, "default_logits"), (None, "default_logits")],
)
def test_ouro_logits_at_the_exits(ouro, ouro_io, threshold, name):
    output, model = engine(
        ouro, ouro_io["input_ids"], ouro.loop.num_loops, "last", exit_rule=threshold and f"gate:{threshold}"
    )
    np.testing.assert_allclose(model.logits(output.read[0]), ouro_io[name], atol=3e-5)


def test_ouro_padding_on_the_left_is_another_document(ouro, ouro_io):
    mask_BS = ouro_io["leftpad_attention_mask"]
    logits_BSV = ouro(ouro_io["input_ids"], segments=jnp.asarray(mask_BS)).logits(ouro.loop.num_loops)
    real_BS = mask_BS == 1
    assert not real_BS.all()
    np.testing.assert_allclose(logits_BSV[real_BS], ouro_io["leftpad_logits"][real_BS], atol=3e-5)


def test_ouro_cross_entropy_and_entropy_of_every_token(ouro, ouro_io):
    """What stage I is made of; the last token has no label."""
    output, model = engine(ouro, ouro_io["input_ids"], ouro.loop.num_loops)
    score = scoring(model, shifted(jnp.asarray(ouro_io["input_ids"])))
    nll_RBS = jax.lax.map(score, output.read).nll_BS
    np.testing.assert_allclose(nll_RBS[:, :, :-1], ouro_io["stage1_ce"], atol=3e-5)
    entropy_BS = -jnp.sum(jnp.exp(output.log_exit_RBS) * output.log_exit_RBS, axis=0)
    np.testing.assert_allclose(entropy_BS[:, :-1], ouro_io["stage1_entropy"], atol=3e-6)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.9])
def test_ouro_exits_where_the_official_code_exits(ouro, ouro_io, threshold):
    from looplm.model.gates import exit_loop

    steps_BS = exit_loop(ouro(ouro_io["input_ids"]).exit_RBS, threshold) - 1
    np.testing.assert_array_equal(steps_BS, ouro_io[f"exit_step_q{threshold}"])


def test_ouro_loss_on_expected_logits_and_its_gradients(ouro, ouro_io, ouro_folder):
    labels_BS = shifted(jnp.asarray(ouro_io["input_ids"]))

    def loss(params):
        lm = looplm.api.LoadedLM(ouro.model, ouro.loop, ouro.objective, params)
        logp_BSV = jax.nn.log_softmax(lm(ouro_io["input_ids"]).expected_logits())
        return -jnp.mean(jnp.take_along_axis(logp_BSV[:, :-1], labels_BS[:, :-1, None], axis=-1))

    value, grads = jax.jit(jax.value_and_grad(loss))(ouro.params)
    np.testing.assert_allclose(value, ouro_io["loss_labels"], atol=3e-6)
    assert_gradients(ouro.official_tensors(grads), load_file(ouro_folder / "grads.safetensors"), 1e-4)


def test_ouro_stage_one_loss_and_gradient_norms(ouro, ouro_io):
    loss, grads = ouro.loss_and_grads(
        ouro_io["input_ids"],
        shifted(jnp.asarray(ouro_io["input_ids"])),
        objective=ExpectedCrossEntropy(entropy_weight=0.05),
    )
    np.testing.assert_allclose(loss, ouro_io["stage1_loss_beta0p05"], atol=3e-6)
    for name, gradient in ouro.official_tensors(grads).items():
        expected = ouro_io[f"stage1_gradnorm/{name}"]
        np.testing.assert_allclose(jnp.linalg.norm(gradient), expected, rtol=1e-4, err_msg=name)


def test_huginn_logits_from_a_given_state_at_all_depths(huginn, huginn_io):
    out = huginn(huginn_io["input_ids"], num_loops=16, initial_state=huginn_io["init_state"])
    for depth in HUGINN_DEPTHS:
        np.testing.assert_allclose(out.logits(depth), huginn_io[f"logits_steps{depth}"], atol=5e-5)


def test_huginn_input_of_the_loops(huginn, huginn_io):
    model, tokens_BS = huginn.functional.bind(huginn.params), jnp.asarray(huginn_io["input_ids"])
    positions_BS = jnp.broadcast_to(jnp.arange(tokens_BS.shape[1]), tokens_BS.shape)
    context = Context(positions_BS, self_mask(huginn.model, jnp.zeros_like(tokens_BS)))
    prelude_BSD, *_ = model.prelude(model.embedding(tokens_BS, jnp.float32) * huginn.model.embedding_scale, context)
    np.testing.assert_allclose(prelude_BSD, huginn_io["prelude_out"], atol=5e-5)


def test_huginn_states_after_every_loop(huginn, huginn_io):
    """A model without coda and norm reads the states; one with the norm alone, what the coda gets."""
    arguments = dict(num_loops=16, initial_state=huginn_io["init_state"])
    bare = without(huginn, coda_layers=0, norm_before_coda=False, final_norm=False)
    states_RBSD = bare(huginn_io["input_ids"], **arguments).hidden_RBSD
    np.testing.assert_allclose(states_RBSD[:8], huginn_io["raw_states_1to8"], atol=5e-5)
    normed = without(huginn, coda_layers=0, norm_before_coda=False)
    normed_RBSD = normed(huginn_io["input_ids"], **arguments).hidden_RBSD
    for depth in HUGINN_DEPTHS:
        np.testing.assert_allclose(normed_RBSD[depth - 1], huginn_io[f"latents_normed_steps{depth}"], atol=5e-5)


def test_huginn_first_states_follow_the_official_law(huginn, huginn_folder):
    law = json.loads((huginn_folder / "sampler.json").read_text())["initial_state"]
    like_BSD, config = jnp.zeros((1, 10_000, huginn.model.dim)), huginn.model.state_init
    context = Context(
        jnp.arange(10_000)[None], jnp.zeros((1, 1, 1), bool), key=jax.random.key(0), sequence_B=jnp.arange(1)
    )
    drawn = np.asarray(initial_state(config, input_BSD=like_BSD, embedded_BSD=like_BSD, context=context))
    assert drawn.size == law["n"]
    assert drawn.std() == pytest.approx(law["std"], rel=0.01)
    for share, value in ((float(share), value) for share, value in law["quantiles"].items()):
        density = np.exp(-((value / config.std) ** 2) / 2) / (config.std * np.sqrt(2 * np.pi))
        error = np.sqrt(2 * share * (1 - share) / law["n"]) / density  # of both samples
        assert np.quantile(drawn, share) == pytest.approx(value, abs=5 * error)


@pytest.mark.parametrize(("detached", "trained", "name"), [(0, 4, "full_0_4"), (3, 2, "trunc_3_2")])
def test_huginn_losses_and_gradients(huginn, huginn_io, huginn_folder, detached, trained, name):
    loss, grads = huginn.loss_and_grads(
        huginn_io["input_ids"],
        huginn_io["labels"],
        num_loops=detached + trained,
        num_detached=detached,
        initial_state=huginn_io["init_state"],
        objective=FinalCrossEntropy(),
    )
    np.testing.assert_allclose(loss, huginn_io[f"loss_{name}"], atol=3e-6)
    assert_gradients(huginn.official_tensors(grads), load_file(huginn_folder / f"grads_{name}.safetensors"), 1e-4)


def test_ouro_in_float64_agrees_to_nine_digits(ouro_folder, ouro_io):
    with jax.enable_x64(True):
        lm = looplm.load(ouro_folder, dtype="float64")
        out = lm(ouro_io["input_ids"])
        np.testing.assert_allclose(out.hidden_RBSD, ouro_io["ut_hidden_f64"], atol=1e-9)
        for depth in range(1, lm.loop.num_loops + 1):
            np.testing.assert_allclose(out.logits(depth), ouro_io["ut_logits_f64"][depth - 1], atol=1e-9)
        np.testing.assert_allclose(jnp.moveaxis(out.exit_RBS, 0, -1), ouro_io["exit_pdf_f64"], atol=1e-9)
        np.testing.assert_allclose(out.expected_logits(), ouro_io["expected_logits_f64"], atol=1e-9)
        logp_BSV = jax.nn.log_softmax(out.expected_logits()[:, :-1])
        labels_BS1 = jnp.asarray(ouro_io["input_ids"])[:, 1:, None]
        loss = -jnp.mean(jnp.take_along_axis(logp_BSV, labels_BS1, axis=-1))
        np.testing.assert_allclose(loss, ouro_io["loss_labels_f64"], atol=1e-9)


@pytest.mark.slow
def test_huginn_in_float64_agrees_to_nine_digits(huginn_folder, huginn_io):
    with jax.enable_x64(True):
        huginn = looplm.load(huginn_folder, dtype="float64")
        state = huginn_io["init_state"].astype(np.float64)
        out = huginn(huginn_io["input_ids"], num_loops=16, initial_state=state)
        for depth in HUGINN_DEPTHS:
            np.testing.assert_allclose(out.logits(depth), huginn_io[f"logits_steps{depth}_f64"], atol=1e-9)
        loss, _ = huginn.loss_and_grads(
            huginn_io["input_ids"], huginn_io["labels"], num_loops=4, initial_state=state, objective=FinalCrossEntropy()
        )
        np.testing.assert_allclose(loss, huginn_io["loss_full_0_4_f64"], atol=1e-9)


@pytest.mark.parametrize("folder", folders("ouro", "huginn", "parcae"), ids=lambda folder: folder.name)
def test_weights_go_back_to_their_official_names(folder):
    lm, stored = looplm.load(folder), load_file(folder / "model.safetensors")
    named = lm.official_tensors(lm.params)
    assert set(named) == set(stored) - {"freqs_cis"} - ({"lm_head.weight"} if lm.model.tie_embeddings else set())
    for tensor, value in named.items():
        np.testing.assert_array_equal(value, stored[tensor], err_msg=tensor)


@pytest.mark.parametrize("depth", [1, 4, 8])
def test_parcae_logits_from_a_given_state(parcae, parcae_io, depth):
    out = parcae(parcae_io["input_ids"], num_loops=depth, initial_state=parcae_io["init_state"])
    np.testing.assert_allclose(out.logits(depth), parcae_io[f"logits_steps{depth}"], atol=3e-5)


def parcae_loss(lm, io, dtype):
    """The objective per scored token, every sequence at its own depth."""
    detached_B, trained_B = jnp.asarray(io["depths_nk"], jnp.int32).T
    tokens_BS = jnp.asarray(io["input_ids"])
    objective = build_objective(lm.objective)

    def loss(params):
        model = lm.functional.bind(params)
        positions_BS = jnp.broadcast_to(jnp.arange(tokens_BS.shape[1]), tokens_BS.shape)
        forward = Forward(
            model, tokens_BS, Context(positions_BS, self_mask(lm.model, jnp.zeros_like(tokens_BS))),
            Depth(lm.loop.backprop_loops, num_trained=trained_B, num_detached=detached_B), dtype,
            start=io["init_state"].astype(dtype),
        )  # fmt: skip
        sums, _ = objective(forward, jnp.asarray(io["labels"]), jax.random.key(0))
        return sums.objective / sums.tokens

    return loss


def test_parcae_loss_and_gradients_with_a_depth_for_every_sequence(parcae, parcae_io, parcae_folder):
    loss, grads = jax.jit(jax.value_and_grad(parcae_loss(parcae, parcae_io, jnp.float32)))(parcae.params)
    np.testing.assert_allclose(loss, parcae_io["loss_sequences"], atol=3e-6)
    assert_gradients(parcae.official_tensors(grads), load_file(parcae_folder / "grads_sequences.safetensors"), 1e-4)


@pytest.mark.slow
def test_parcae_in_float64_agrees_to_nine_digits(parcae_folder, parcae_io):
    with jax.enable_x64(True):
        lm = looplm.load(parcae_folder, dtype="float64")
        for depth in (1, 4, 8):
            out = lm(parcae_io["input_ids"], num_loops=depth, initial_state=parcae_io["init_state"].astype(float))
            np.testing.assert_allclose(out.logits(depth), parcae_io[f"logits_steps{depth}_f64"], atol=1e-9)
        loss, grads = jax.jit(jax.value_and_grad(parcae_loss(lm, parcae_io, jnp.float64)))(lm.params)
        np.testing.assert_allclose(loss, parcae_io["loss_sequences_f64"], atol=1e-9)
        stored = load_file(parcae_folder / "grads_sequences.safetensors")  # rounded to float32
        assert_gradients(lm.official_tensors(grads), stored, 1e-7)


@pytest.mark.parametrize(
    ("change", "culprit"),
    [({"injection_type": "linear"}, "injection_type='linear'"), ({"n_layers_in_coda": 3}, "n_layers_in_coda=3")],
)
def test_a_parcae_of_another_kind_is_refused(tmp_path, change, culprit):
    config = config_of(GOLDEN / "parcae_a")
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=culprit):
        looplm.load(tmp_path)
