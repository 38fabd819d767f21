"""Official models that are damaged or forged: one line that names the file, and no memory for what it claims."""

import json
import random
import shutil
import struct
from pathlib import Path

import pytest

from looplm.checkpoint.hf_folder import HFFolder, is_official
from looplm.errors import UserError

GOLDEN = Path(__file__).parents[1] / "golden" / "ouro_a"
MUTATIONS = 10_000
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


def test_mutated_headers_are_refused_or_read_as_they_are(folder: Path) -> None:
    file, draw = folder / "model.safetensors", random.Random(0)
    content = file.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header, data = content[8 : 8 + length], content[8 + length :]
    read(folder)
    before, messages = peak_mb(reset=True), []
    for _ in range(MUTATIONS):
        write(file, *mutated(header, data, draw))
        try:
            assert all(size <= len(data) for size in read(folder))
        except UserError as error:
            messages.append(str(error))
    assert len(messages) > MUTATIONS / 2
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
        ({"num_hidden_layers": 10**9}, "speaks of 1000000000 layers, and the files hold 2 tensors"),
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
