"""Official models that are damaged or forged: one line that names the file, and no memory for what it claims."""

import json
import random
import shutil
import struct
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import looplm
from looplm.checkpoint.hf_folder import HFFolder, is_official
from looplm.errors import UserError

GOLDEN = Path(__file__).parents[1] / "golden" / "ouro_a"
SPARE_MB = 64
HUGE = (0, 1, 7, 8, 2**31, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1, -1)
WORDS = ("F32", "F64", "BF16", "F8_E4M3", "I8", "C64", "BOOL", "", "object", None, [], {}, 3)


def peak_mb(*, reset: bool = False) -> float:
    """The most memory that this process had at a time since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder with one small file of two tensors."""
    shutil.copy(GOLDEN / "config.json", tmp_path)
    header = {
        "__metadata__": {"format": "pt"},
        "a.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b.weight": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
    }
    write(tmp_path / "model.safetensors", json.dumps(header).encode(), bytes(range(32)))
    return tmp_path


def write(file: Path, header: bytes, data: bytes, length: int | None = None) -> None:
    file.write_bytes(struct.pack("<Q", len(header) if length is None else length % 2**64) + header + data)


def mutated(header: bytes, data: bytes, draw: random.Random) -> tuple[bytes, bytes, int | None]:
    """Changes bytes, or values where the format has a meaning for them."""
    kind = draw.randrange(8)
    if kind == 0:
        return header, data, draw.choice((*HUGE, len(header) + draw.randint(-40, 40)))
    if kind == 1:
        return header, data[: draw.randrange(len(data))], None
    if kind == 2:
        return header[: draw.randrange(len(header))], data, None
    if kind < 5:
        changed = bytearray(header)
        for _ in range(draw.randint(1, 4)):
            changed[draw.randrange(len(changed))] = draw.randrange(256)
        return bytes(changed), data, None
    tree = json.loads(header)
    tensor = tree[draw.choice(["a.weight", "b.weight"])]
    if kind == 5:
        tensor["data_offsets"][draw.randrange(2)] = draw.choice(HUGE)
    elif kind == 6:
        tensor["shape"] = draw.choice([[draw.choice(HUGE)], [draw.choice(HUGE) for _ in range(3)], [2] * 70, None, "x"])
    else:
        tensor[draw.choice(["dtype", "shape", "data_offsets", "other"])] = draw.choice(WORDS)
        tree[draw.choice(["../x", "/etc/x", "x\0y", "\n", "\u202e", ""])] = tensor
    return json.dumps(tree).encode(), data, None


@pytest.mark.parametrize("count", [2_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_mutated_headers_are_refused_or_read_as_they_are(folder: Path, count: int) -> None:
    file, draw = folder / "model.safetensors", random.Random(0)
    content = file.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header, data = content[8 : 8 + length], content[8 + length :]
    read(folder)
    before, messages = peak_mb(reset=True), []
    for _ in range(count):
        write(file, *mutated(header, data, draw))
        try:
            assert all(size <= len(data) for size in read(folder))
        except UserError as error:
            messages.append(str(error))
    assert len(messages) > count / 2
    assert [text for text in messages if str(file) not in text or "\n" in text] == []
    assert peak_mb() - before < SPARE_MB


def read(folder: Path) -> list[int]:
    """Bytes of every tensor."""
    opened = HFFolder(folder)
    return [opened.tensor(name).nbytes for name in opened._stored]


def test_a_header_that_is_as_long_as_it_says(folder: Path) -> None:
    """300 MB of header are not even read."""
    file = folder / "model.safetensors"
    with file.open("wb") as sparse:
        sparse.write(struct.pack("<Q", 300_000_000))
        sparse.truncate(300_000_008)
    before = peak_mb(reset=True)
    with pytest.raises(UserError, match="is no sound safetensors file"):
        read(folder)
    assert peak_mb() - before < SPARE_MB


def test_a_tensor_in_two_files_is_refused(folder: Path) -> None:
    shutil.copy(folder / "model.safetensors", folder / "model-2.safetensors")
    with pytest.raises(UserError, match=r"both hold 'a.weight'; keep the files of one model"):
        read(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"num_hidden_layers": 10**9, "layer_types": None},
            "speaks of 1000000000 layers, and the files hold 2 tensors",
        ),
        ({"num_hidden_layers": "many"}, "describes no model"),
        ({"hidden_size": -4}, "describes no model"),
        ({"hidden_size": None}, "has no hidden_size"),
        ({"model_type": ["ouro"]}, "is not known"),
    ],
)
def test_a_config_that_describes_nothing_is_refused(folder: Path, change: dict, message: str) -> None:
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))

    def load() -> None:
        opened = HFFolder(folder)
        opened.params(opened.model(), "float32")

    with pytest.raises(UserError, match=message):
        load()


@pytest.mark.parametrize("text", ["", "[]", "null", '"ouro"', "[" * 200_000, "{", "\xff"])
def test_a_config_that_is_no_object_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    assert not is_official(folder)
    with pytest.raises(UserError, match="cannot be read"):
        HFFolder(folder)


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """The fixture, to be changed."""
    return Path(shutil.copytree(GOLDEN, tmp_path / "whole", ignore=shutil.ignore_patterns("io*", "grads*", "ch*")))


def change(folder: Path, **config: object) -> dict[str, np.ndarray]:
    """Changes keys of the config; the stored tensors."""
    stored = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(stored | config))
    return load_file(folder / "model.safetensors")


def params(folder: Path) -> dict:
    opened = HFFolder(folder)
    return opened.params(opened.model(), np.float32)


@pytest.mark.parametrize(
    "wrap",
    [
        "module.{}".format,
        "_orig_mod.{}".format,
        "module._orig_mod.{}".format,
        "model.{}".format,
        "transformer.{}".format,
        "lightning.net.{}".format,
        lambda name: name.replace(".self_attn.", "._orig_mod.self_attn.").replace(
            ".mlp.", "._fsdp_wrapped_module.mlp."
        ),
    ],
    ids=["data parallel", "compile", "both", "model", "transformer", "two", "inner parts"],
)
def test_names_that_a_wrapper_made_are_read(whole: Path, wrap) -> None:
    expected = params(whole)
    save_file({wrap(name): value for name, value in change(whole).items()}, whole / "model.safetensors")
    found = params(whole)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_one_tensor_under_two_names_is_refused(whole: Path) -> None:
    """Wrapped and bare: which one is meant cannot be known."""
    stored = {f"module.{name}": value for name, value in change(whole).items()}
    save_file(stored | {"model.norm.weight": np.zeros(64, np.float32)}, whole / "model.safetensors")
    with pytest.raises(UserError, match=r"missing tensors \[.* and \d+ more, unknown tensors \['module"):
        params(whole)


def test_a_pointer_in_place_of_a_file_is_named(whole: Path) -> None:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 540000\n"
    for name in ("model.safetensors", "config.json"):
        (whole / name).write_text(text)
        with pytest.raises(UserError, match=rf"{name} is a pointer of git-lfs and not the file; run `git lfs pull`"):
            looplm.load(whole)


def test_a_link_to_nothing_is_named(whole: Path) -> None:
    (whole / "model.safetensors").unlink()
    (whole / "model.safetensors").symlink_to("../blobs/0123")
    with pytest.raises(UserError, match=r"model.safetensors is a link to \.\./blobs/0123, which is not there"):
        looplm.load(whole)


def test_a_file_that_the_index_names_and_that_is_missing(whole: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (whole / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"lacks model-00002-of-00002.safetensors, which .*index.json names"):
        looplm.load(whole)


def test_a_tied_head_may_be_stored_if_it_is_the_embeddings(whole: Path) -> None:
    stored = change(whole, tie_word_embeddings=True)
    with pytest.raises(UserError, match=r"lm_head.weight is not model.embed_tokens.weight; untie it"):
        params(whole)
    save_file(stored | {"lm_head.weight": stored["model.embed_tokens.weight"]}, whole / "model.safetensors")
    assert "head" not in params(whole)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_none_are_refused(whole: Path, value: float) -> None:
    stored = change(whole)
    stored["model.layers.1.mlp.up_proj.weight"][3, 4] = value
    save_file(stored, whole / "model.safetensors")
    with pytest.raises(UserError, match=r"model.layers.1.mlp.up_proj.weight holds 1 values that are no finite"):
        params(whole)


def test_quantised_weights_are_refused(whole: Path) -> None:
    stored = change(whole)
    save_file(stored | {"model.norm.weight": np.ones(64, np.int8)}, whole / "model.safetensors")
    with pytest.raises(UserError, match=r"model.norm.weight holds int8; looplm reads weights that are floats"):
        params(whole)


@pytest.mark.parametrize("change_of", [{"rope_base": 500.0}, {"n_heads": 2, "num_attention_heads": 2}])
def test_a_stored_table_of_rotations_that_the_config_contradicts(tmp_path: Path, change_of: dict) -> None:
    """The official code turns with the table, whatever the config says."""
    for name in ("config.json", "model.safetensors"):
        shutil.copy(GOLDEN.with_name("huginn_a") / name, tmp_path)
    derived = {"num_key_value_heads": None, "head_dim": None, "qk_bias": False}
    stored = change(tmp_path, **(derived | change_of))
    save_file({name: value for name, value in stored.items() if "qk_bias" not in name}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"freqs_cis of shape .* is not what the rotary settings"):
        params(tmp_path)
