"""GGUF files hold the weights as llama.cpp wants them; `LOOPLM_EDGE=PYTHON pytest -m edge` runs them there.

LOOPLM_EDGE is a Python with llama-cpp-python (tools/llama_cpp_run.py says how it is built).
"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from safetensors.numpy import save_file

import looplm
from looplm.convert.gguf_tokenizer import add_tokenizer
from looplm.data.tokenizer import Tokenizer
from tests.checkpoint.folders import folders
from tests.convert.folders import copy_of, tensors_of

gguf = pytest.importorskip("gguf", reason="pip install 'looplm[edge]'")

SCRIPT = Path(__file__).parents[2] / "tools" / "llama_cpp_run.py"
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
TEXTS = ("A plain line.", "  two spaces,  then\ttabs\n\nand lines", "\u65e5\u672c \U0001f389 caf\u00e9 12345", "x", " ")


def theirs(name):
    """Return llama.cpp's name of one of transformers' tensors."""
    parts = name.removesuffix(".weight")
    if not parts.startswith("model.layers."):
        return f"{NAMES[parts]}.weight"
    layer, part = parts.removeprefix("model.layers.").split(".", 1)
    return f"blk.{layer}.{NAMES[part]}.weight"


def by_neighbours(weight, heads):
    """Return rows i and i + half of every head as neighbours, one by one."""
    turned = np.empty_like(weight)
    size = len(weight) // heads
    for head in range(heads):
        for i in range(size // 2):
            turned[head * size + 2 * i] = weight[head * size + i]
            turned[head * size + 2 * i + 1] = weight[head * size + size // 2 + i]
    return turned


def read(path):
    reader = gguf.GGUFReader(path)
    return reader, {tensor.name: tensor for tensor in reader.tensors}


@pytest.fixture
def wide(tmp_path):
    """Return the fixture with numbers that are drawn, and widths that blocks of 32 divide."""
    folder = copy_of("nanbeige_a", tmp_path / "wide", hidden_size=64, intermediate_size=96)
    draw, widths = np.random.default_rng(0), {40: 64, 56: 96}
    drawn = {
        name: draw.normal(0, 0.1, [widths.get(size, size) for size in value.shape]).astype(np.float32)
        for name, value in tensors_of(folder).items()
    }
    save_file(drawn, folder / "model.safetensors")
    return folder


@pytest.fixture
def imported(command, quick, tmp_path):
    def run(folder):
        shown = command("convert", "import", folder, tmp_path / "run")
        assert shown.code == 0, shown.stderr
        return tmp_path / "run"

    return run


@pytest.mark.parametrize("folder", folders("nanbeige"), ids=lambda folder: folder.name)
def test_a_file_holds_every_tensor_and_says_how_the_stack_loops(folder, command, imported, tmp_path):
    out = tmp_path / "model.gguf"
    shown = command("convert", "gguf", imported(folder), out, "--type", "f32")
    assert shown.code == 0, shown.stderr
    reader, stored = read(out)
    config, official = json.loads((folder / "config.json").read_text()), tensors_of(folder)
    if config["tie_word_embeddings"]:
        official.pop("lm_head.weight", None)
    assert set(stored) == {theirs(name) for name in official}
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for name, value in official.items():
        part = name.removesuffix(".weight").rsplit(".", 1)[-1]
        wanted = by_neighbours(value, heads[part]) if part in heads else value
        written = stored[theirs(name)].data.reshape(wanted.shape)
        np.testing.assert_array_equal(written, wanted.astype(np.float32), err_msg=name)
    said = {key: field.contents() for key, field in reader.fields.items()}
    assert said["general.architecture"] == "nanbeige"
    assert said["nanbeige.num_loops"] == config["num_loops"]
    assert said["nanbeige.skip_loop_final_norm"] == config["skip_loop_final_norm"]
    assert said["nanbeige.block_count"] == config["num_hidden_layers"]
    assert said["nanbeige.attention.head_count_kv"] == config["num_key_value_heads"]
    assert said["nanbeige.attention.key_length"] == config["head_dim"]
    assert said["nanbeige.rope.freq_base"] == pytest.approx(config["rope_theta"])
    assert said["tokenizer.ggml.model"] == "none"
    assert [file.name for file in tmp_path.glob("*.gguf*")] == ["model.gguf"]


@pytest.mark.parametrize(("kind", "rounded"), [("f16", 2**-11), ("bf16", 2**-8)])
def test_sixteen_bits_round_once(kind, rounded, command, imported, tmp_path):
    folder, out = copy_of("nanbeige_a", tmp_path / "hf"), tmp_path / "model.gguf"
    assert command("convert", "gguf", imported(folder), out, "--type", kind).code == 0
    _, stored = read(out)
    for name, value in tensors_of(folder).items():
        tensor = stored[theirs(name)]
        if value.ndim == 1:
            assert tensor.tensor_type.name == "F32"
        elif "q_proj" not in name and "k_proj" not in name:
            assert tensor.tensor_type.name == kind.upper()
            written = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            np.testing.assert_allclose(written, value, rtol=rounded, atol=1e-7, err_msg=name)


@pytest.mark.parametrize(("kind", "levels"), [("q8_0", 127), ("q5_0", 16), ("q4_0", 8)])
def test_few_bits_are_near_by_half_a_step_of_their_block(kind, levels, command, imported, wide, tmp_path):
    out = tmp_path / "model.gguf"
    assert command("convert", "gguf", imported(wide), out, "--type", kind).code == 0
    _, stored = read(out)
    for name, value in tensors_of(wide).items():
        tensor = stored[theirs(name)]
        if value.ndim == 1 or "q_proj" in name or "k_proj" in name:
            continue
        end = name in ("lm_head.weight", "model.embed_tokens.weight")
        assert tensor.tensor_type.name == ("Q8_0" if end else kind.upper())
        written = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(-1, 32)
        blocks = value.reshape(-1, 32)
        # The largest of a block is a whole number of steps; on its other side the scale is one level short, and a
        # scale is a float16.
        step = np.abs(blocks).max(-1, keepdims=True) / (127 if end else levels)
        asymmetric = 0.5 if end or kind == "q8_0" else 1.0
        assert np.all(np.abs(written - blocks) <= step * (asymmetric + 0.1)), name
        assert np.any(written != blocks)


def test_pieces_and_rules_are_those_of_the_model_file(tiny_data, tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "vocab.gguf", "nanbeige")
    tokenizer = Tokenizer.find(tiny_data / "train")
    said = add_tokenizer(writer, tokenizer, tokenizer.vocab_size + 3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    fields = {key: field.contents() for key, field in gguf.GGUFReader(tmp_path / "vocab.gguf").fields.items()}
    model = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer.path))
    size = model.vocab_size()
    assert f"{size} pieces" in said
    pieces, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    assert len(pieces) == len(types) == size + 3
    for i in range(size):
        assert pieces[i] == model.id_to_piece(i)
        assert fields["tokenizer.ggml.scores"][i] == pytest.approx(model.get_score(i))
        assert (types[i] == 2, types[i] == 3, types[i] == 6) == (
            model.is_unknown(i),
            model.is_control(i),
            model.is_byte(i),
        )
    assert types[size:] == [5] * 3
    assert fields["tokenizer.ggml.bos_token_id"] == model.bos_id()
    assert fields["tokenizer.ggml.eos_token_id"] == model.eos_id()
    assert not fields["tokenizer.ggml.add_space_prefix"]


def test_what_llama_cpp_does_not_run_is_refused_and_nothing_is_written(command, imported, tmp_path):
    run = imported(copy_of("nanbeige_a", tmp_path / "hf"))
    other = tmp_path / "ouro"
    assert command("convert", "import", copy_of("ouro_a", tmp_path / "ouro_hf"), other).code == 0
    (tmp_path / "there.gguf").write_text("kept")
    for arguments, told in (
        ((run, tmp_path / "a.gguf", "--type", "q4_0"), "model.dim=40 cannot be cut into blocks of 32"),
        ((run, tmp_path / "a.gguf", "--type", "q3"), "--type q3 is not known"),
        ((run, tmp_path / "a.bin"), "should end in .gguf"),
        ((run, tmp_path / "there.gguf"), "there.gguf"),
        ((other, tmp_path / "a.gguf"), "cannot say model.norm_placement"),
        ((tmp_path / "none", tmp_path / "a.gguf"), "none"),
    ):
        shown = command("convert", "gguf", *arguments)
        assert shown.code == 2, arguments
        assert told in shown.stderr.replace("\n", " "), shown.stderr
    assert [file.name for file in sorted(tmp_path.glob("*.gguf*"))] == ["there.gguf"]
    assert (tmp_path / "there.gguf").read_text() == "kept"


def in_llama_cpp(file, tmp_path, **asked):
    (tmp_path / "asked.json").write_text(json.dumps(asked))
    python = os.environ.get("LOOPLM_EDGE") or pytest.skip("LOOPLM_EDGE names a Python with llama-cpp-python")
    subprocess.run([python, SCRIPT, file, tmp_path / "asked.json", tmp_path / "out.npz"], check=True)
    return np.load(tmp_path / "out.npz")


@pytest.mark.edge
@pytest.mark.parametrize("folder", folders("nanbeige"), ids=lambda folder: folder.name)
@pytest.mark.parametrize(("kind", "keys", "near"), [("f32", 0, 1e-4), ("f16", 1, 5e-2)])
def test_llama_cpp_computes_the_logits_of_the_official_code(folder, kind, keys, near, command, imported, tmp_path):
    out = tmp_path / "model.gguf"
    assert command("convert", "gguf", imported(folder), out, "--type", kind).code == 0
    official = np.load(folder / "io.npz")
    made = in_llama_cpp(out, tmp_path, ids=official["input_ids"].tolist(), keys=keys)
    np.testing.assert_allclose(made["logits_BSV"], official["logits"], atol=near)


@pytest.mark.edge
@pytest.mark.slow
def test_a_model_that_was_trained_here_writes_the_same_text_in_llama_cpp(command, tiny_data, tmp_path):
    sets = {"num_steps": 60, "data.train": tiny_data / "train", "data.validation": tiny_data / "validation"}
    options = [part for name, value in sets.items() for part in ("--set", f"{name}={value}")]
    run, out = tmp_path / "run", tmp_path / "model.gguf"
    assert command("train", "configs/edge.py:tiny", "--workdir", run, *options).code == 0
    assert command("convert", "gguf", run, out, "--type", "f16").code == 0
    lm, tokenizer = looplm.load(run), Tokenizer.find(run)
    prompt = [tokenizer.bos_id, *map(int, tokenizer.encode("The "))]
    made = in_llama_cpp(out, tmp_path, ids=[prompt], greedy=32, texts=TEXTS)
    ours = lm.generate([prompt], max_tokens=32)
    np.testing.assert_array_equal(made["greedy_N"], ours[0].tokens)
    for number, text in enumerate(TEXTS):
        np.testing.assert_array_equal(made[f"text_{number}"], tokenizer.encode(text), err_msg=repr(text))
