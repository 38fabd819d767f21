"""Ready-made tokens are taken over as they are, or refused when what is said of them cannot be."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from looplm.data.dataset import TokenDataset
from looplm.data.formats import megatron, token_file
from looplm.data.formats.document import Reading
from looplm.data.tokenizer import Tokenizer
from looplm.data.writer import build_dataset
from looplm.errors import UserError

SEPARATOR = 99


@pytest.fixture
def documents() -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, SEPARATOR, int(size)).tolist() for size in rng.integers(1, 40, 60)]


@pytest.fixture
def take(tmp_path: Path):
    """Takes files over and returns the documents of the dataset."""

    def run(*paths: Path, **options) -> list[list[int]]:
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        build_dataset(list(paths), None, out, num_workers=1, **options)
        dataset = TokenDataset.open(out)
        return [
            dataset.tokens(start, stop).tolist()
            for start, stop in pairwise(int(place) for place in dataset.document_offsets)
        ]

    return run


def llm_c(path: Path, tokens: list[int], *, magic: int = 20240520, version: int = 1, count: int | None = None) -> Path:
    header = np.zeros(256, "<i4")
    header[:3] = magic, version, len(tokens) if count is None else count
    path.write_bytes(header.tobytes() + np.array(tokens, "<u2" if version == 1 else "<u4").tobytes())
    return path


def megatron_files(path: Path, documents: list[list[int]], dtype: str = "<u2", code: int = 8) -> Path:
    """As Megatron-LM's IndexedDatasetBuilder writes them: one sequence a document."""
    sizes = np.array([len(document) for document in documents], "<i4")
    pointers = (np.concatenate([[0], np.cumsum(sizes[:-1], dtype=np.int64)]) * np.dtype(dtype).itemsize).astype("<i8")
    borders = np.arange(len(documents) + 1, dtype="<i8")
    path.write_bytes(b"".join(np.array(document, dtype).tobytes() for document in documents))
    head = b"MMIDIDX\x00\x00" + (1).to_bytes(8, "little") + bytes([code])
    counts = len(sizes).to_bytes(8, "little") + len(borders).to_bytes(8, "little")
    path.with_suffix(".idx").write_bytes(head + counts + sizes.tobytes() + pointers.tobytes() + borders.tobytes())
    return path


@pytest.mark.parametrize("place", ["before", "after", "after but for the last"])
@pytest.mark.parametrize("piece_tokens", [1 << 22, 50])
def test_a_separator_begins_or_ends_documents(
    take, documents: list[list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, piece_tokens: int
) -> None:
    monkeypatch.setattr(token_file, "PIECE_TOKENS", piece_tokens)
    monkeypatch.setattr("looplm.data.formats.stream.CHUNK_BYTES", 1060)  # above the header
    expected = [[SEPARATOR, *d] if place == "before" else [*d, SEPARATOR] for d in documents]
    if place == "after but for the last":
        expected[-1].pop()
    flat = [token for document in expected for token in document]
    reading = Reading(separator_id=SEPARATOR)
    np.array(flat, "<u2").tofile(tmp_path / "nanogpt.bin")
    assert take(tmp_path / "nanogpt.bin", reading=reading) == expected
    if place != "after but for the last":  # a shard that is cut at both ends, as these writers do it
        assert take(llm_c(tmp_path / "llm.bin", flat), reading=reading) == expected


def npy(path: Path, tokens: list[int]) -> Path:
    np.save(path, np.array(tokens, np.uint16))
    return path


def bare(path: Path, tokens: list[int]) -> Path:
    np.array(tokens, "<u2").tofile(path)
    return path


def shards(write, folder: Path, flat: list[int], size: int) -> list[Path]:
    suffix = ".npy" if write is npy else ".bin"
    cuts = range(0, len(flat), size)
    return [write(folder / f"shard_{n:03d}{suffix}", flat[cut : cut + size]) for n, cut in enumerate(cuts)]


@pytest.mark.parametrize("write", [llm_c, npy, bare])
@pytest.mark.parametrize("begins", [True, False])
def test_shards_that_are_cut_inside_documents(
    take, documents: list[list[int]], tmp_path: Path, write, begins: bool
) -> None:
    flat = [token for d in documents for token in ([SEPARATOR, *d] if begins else [*d, SEPARATOR])]
    size = next(n for n in range(150, 200) if SEPARATOR not in (flat[n], flat[n - 1], flat[2 * n], flat[2 * n - 1]))
    paths = shards(write, tmp_path, flat, size)
    reading = Reading(separator_id=SEPARATOR)
    taken = take(*paths, reading=reading)
    assert [token for d in taken for token in d] == flat
    place = 0 if begins else -1
    assert all(SEPARATOR not in d[1:] if begins else SEPARATOR not in d[:-1] for d in taken)
    # All but the parts of documents that were cut have their mark where the first has it.
    assert sum(d[place] != SEPARATOR for d in taken) < len(paths)
    assert take(*paths[1:], reading=reading)[-1] == taken[-1], "so too without the first shard"


@pytest.mark.parametrize(("write", "begins"), [(llm_c, True), (npy, True), (bare, False)])
def test_where_all_shards_are_cut_the_format_says_which_it_is(take, tmp_path: Path, write, begins: bool) -> None:
    path = write(tmp_path / f"a.{'npy' if write is npy else 'bin'}", [1, 2, SEPARATOR, 3, 4, SEPARATOR, 5])
    expected = [[1, 2], [SEPARATOR, 3, 4], [SEPARATOR, 5]] if begins else [[1, 2, SEPARATOR], [3, 4, SEPARATOR], [5]]
    assert take(path, reading=Reading(separator_id=SEPARATOR)) == expected
    report = build_dataset([path], None, tmp_path / "told", reading=Reading(separator_id=SEPARATOR))
    assert report.notes == {"cut_document": 1, "separator_begins" if begins else "separator_ends": 1}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:600], "its header is cut: 600 of 1024 bytes are there"),
        (lambda data: data[:4] + b"\2" + data[5:], "its header has version 2, and only 1 is known"),
        (lambda data: data[:-2], "its header says 100 tokens, and its size 99"),
    ],
)
def test_a_header_that_is_cut_or_of_another_version_is_no_row_of_tokens(take, tmp_path, damage, message: str) -> None:
    path = llm_c(tmp_path / "a.bin", list(range(100)))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=rf"a\.bin is damaged: {message}"):
        take(path)


def test_arrays_that_are_no_tokens_are_refused(take, tmp_path: Path) -> None:
    np.save(tmp_path / "floats.npy", np.zeros(3, np.float32))
    np.save(tmp_path / "rows.npy", np.zeros((3, 2), np.uint16))
    for name in ("floats", "rows"):
        with pytest.raises(UserError, match=rf"{name}\.npy is damaged: it holds an array of shape .* not a row"):
            take(tmp_path / f"{name}.npy")


def test_wide_tokens(take, tmp_path: Path) -> None:
    tokens = [100_000, 5, 70_000, 128_000]
    assert take(llm_c(tmp_path / "llama.bin", tokens, magic=20240801, version=7)) == [tokens]
    np.array(tokens, "<u4").tofile(tmp_path / "bare.bin")
    assert take(tmp_path / "bare.bin", reading=Reading(token_dtype="uint32")) == [tokens]
    dataset = TokenDataset.open(next(tmp_path.glob("out*")))
    assert (dataset.manifest.dtype, dataset.vocab_size, dataset.has_tokenizer) == ("uint32", 128_001, False)


def test_without_a_separator_a_file_is_a_document_and_a_long_one_is_cut(
    take, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_file, "MAX_DOCUMENT_TOKENS", 100)
    monkeypatch.setattr("looplm.data.formats.stream.CHUNK_BYTES", 34)
    tokens = np.random.default_rng(0).integers(0, 50, 1234).tolist()
    np.array(tokens, "<u2").tofile(tmp_path / "a.bin")
    taken = take(tmp_path / "a.bin")
    assert [token for document in taken for token in document] == tokens
    assert [len(document) for document in taken] == [100] * 12 + [34]


@pytest.mark.parametrize("begins", [True, False])
def test_only_the_long_document_is_cut(
    take, documents: list[list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begins: bool
) -> None:
    monkeypatch.setattr(token_file, "PIECE_TOKENS", 50)
    monkeypatch.setattr(token_file, "MAX_DOCUMENT_TOKENS", 1000)
    monkeypatch.setattr("looplm.data.formats.stream.CHUNK_BYTES", 34)
    whole = [documents[0], [7] * 2500, *documents[1:]]
    expected = [[SEPARATOR, *d] if begins else [*d, SEPARATOR] for d in whole]
    np.array([token for d in expected for token in d], "<u2").tofile(tmp_path / "a.bin")
    taken = take(tmp_path / "a.bin", reading=Reading(separator_id=SEPARATOR))
    assert taken[0] == expected[0]
    assert taken[1:4] == [expected[1][start : start + 1000] for start in (0, 1000, 2000)]
    assert taken[4:] == expected[2:]


@pytest.mark.parametrize("separator", [-1, 70_000])
def test_a_separator_that_cannot_be_is_refused(take, tmp_path: Path, separator: int) -> None:
    np.array([1, 2, 3], "<u2").tofile(tmp_path / "a.bin")
    with pytest.raises(UserError, match=rf"--separator-id {separator} is no token of .*a\.bin, which holds uint16"):
        take(tmp_path / "a.bin", reading=Reading(separator_id=separator))


def test_a_separator_that_is_nowhere_is_told(tmp_path: Path) -> None:
    np.array([1, 2, 3], "<u2").tofile(tmp_path / "a.bin")
    report = build_dataset([tmp_path / "a.bin"], None, tmp_path / "out", reading=Reading(separator_id=9))
    assert report.notes == {"no_separator": 1}


def test_empty_documents_are_left_out(tmp_path: Path) -> None:
    np.array([1, 2, 9, 9, 3, 9], "<u2").tofile(tmp_path / "a.bin")
    report = build_dataset([tmp_path / "a.bin"], None, tmp_path / "out", reading=Reading(separator_id=9))
    assert (report.num_documents, report.skipped) == (2, {"empty": 1})
    assert TokenDataset.open(tmp_path / "out").document_sources.tolist() == [[0, 0], [0, 2]]


@pytest.mark.parametrize("piece_bytes", [1 << 23, 100])
@pytest.mark.parametrize(("dtype", "code"), [("<u2", 8), ("<i4", 4), ("<i2", 3)])
def test_megatron(
    take,
    documents: list[list[int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dtype: str,
    code: int,
    piece_bytes,
) -> None:
    monkeypatch.setattr(megatron, "_PIECE_BYTES", piece_bytes)
    monkeypatch.setattr(megatron, "_DOCUMENTS", 7)
    documents = [*documents[:30], [], *documents[30:]]
    assert take(megatron_files(tmp_path / "m.bin", documents, dtype, code)) == [d for d in documents if d]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b, i: (b[:-2], i), "it is shorter than its .idx says"),
        (lambda b, i: (b + b"xx", i), "it is longer than its .idx says"),
        (lambda b, i: (b, i[:-8]), r"its .idx has \d+ bytes instead of"),
        (lambda b, i: (b, b"x" + i[1:]), "its .idx is no index of Megatron"),
        (lambda b, i: (b, i[:34] + b"\xff" + i[35:]), "do not lie one after another"),
    ],
)
def test_a_damaged_megatron_file_is_refused(take, documents, tmp_path: Path, damage, message: str) -> None:
    path = megatron_files(tmp_path / "m.bin", documents)
    index = path.with_suffix(".idx")
    for file, data in zip((path, index), damage(path.read_bytes(), index.read_bytes()), strict=True):
        file.write_bytes(data)
    with pytest.raises(UserError, match=rf"m\.bin is damaged: .*{message}"):
        take(path)


def test_ids_that_wrapped_in_sixteen_bits_are_refused(take, tmp_path: Path) -> None:
    wrapped = np.array([5, 40_000], "<u2").view("<i2").tolist()
    with pytest.raises(UserError, match=r"m\.bin:1 holds token -25536: ids of 32768 and more became negative"):
        take(megatron_files(tmp_path / "m.bin", [wrapped], "<i2", 3))


def test_a_wrong_width_is_refused(take, tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 50_000, 1000)
    large = np.random.default_rng(0).integers(0, 250_000, 1000)
    large.astype("<u4").tofile(tmp_path / "large.bin")
    np.random.default_rng(0).integers(0, 65, 1000).astype("<u2").tofile(tmp_path / "characters.bin")
    with pytest.raises(UserError, match=r"large\.bin read as uint16 .*give --token-dtype uint32"):
        take(tmp_path / "large.bin")
    with pytest.raises(UserError, match=r"characters\.bin read as uint32 .*give --token-dtype uint16"):
        take(tmp_path / "characters.bin", reading=Reading(token_dtype="uint32"))
    assert take(tmp_path / "large.bin", reading=Reading(token_dtype="uint32")) == [large.tolist()]
    ids.astype("<u4").tofile(tmp_path / "wide.bin")
    ids.astype("<u2").tofile(tmp_path / "narrow.bin")
    (tmp_path / "odd.bin").write_bytes(b"123")
    with pytest.raises(UserError, match=r"wide\.bin read as uint16 .*give --token-dtype uint32"):
        take(tmp_path / "wide.bin")
    with pytest.raises(UserError, match=r"narrow\.bin read as uint32 .*give --token-dtype uint16"):
        take(tmp_path / "narrow.bin", reading=Reading(token_dtype="uint32"))
    with pytest.raises(UserError, match=r"odd\.bin is damaged: its 3 bytes are no whole number of uint16 tokens"):
        take(tmp_path / "odd.bin")
    with pytest.raises(UserError, match=r"llm\.bin is damaged: its header says 7 tokens, and its size 2"):
        take(llm_c(tmp_path / "llm.bin", [1, 2], count=7))


def test_ids_outside_the_vocabulary_are_refused(take, tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = llm_c(tmp_path / "llm.bin", [5, 600, 7])
    for options in ({"vocab_size": 600}, {}):
        with pytest.raises(UserError, match=r"llm\.bin:1 holds token 600, which is not below the vocabulary of 600"):
            build_dataset([path], None if options else tokenizer.path, tmp_path / "out", **options)
    assert take(path, vocab_size=700) == [[5, 600, 7]]
    pq.write_table(pa.table({"input_ids": [[5], [7, -1]]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet:2 holds token -1"):
        take(tmp_path / "a.parquet")


@pytest.mark.parametrize("kind", [pa.list_(pa.int64()), pa.large_list(pa.uint16()), pa.list_(pa.int32())])
def test_ids_of_parquet(take, documents: list[list[int]], tmp_path: Path, kind: pa.DataType) -> None:
    rows = pa.array([*documents[:30], None, [], *documents[30:]], kind)
    pq.write_table(pa.table({"id": range(len(rows)), "input_ids": rows}), tmp_path / "a.parquet", row_group_size=13)
    assert take(tmp_path / "a.parquet") == documents


def test_with_its_tokenizer_the_bytes_of_texts_are_known(tokenizer: Tokenizer, tmp_path: Path) -> None:
    words = ["one document", "caf\u00e9 and more", "x"]
    flat = [i for text in words for i in [tokenizer.bos_id, *tokenizer.encode(text).tolist(), tokenizer.eos_id]]
    report = build_dataset([llm_c(tmp_path / "a.bin", flat)], tokenizer.path, tmp_path / "out")
    dataset = TokenDataset.open(tmp_path / "out")
    assert report.num_documents == 3
    assert dataset.document_bytes.tolist() == [len(text.encode()) for text in words]
    assert dataset.tokenizer().fingerprint == tokenizer.fingerprint


def test_a_dataset_without_a_tokenizer_says_so(take, tmp_path: Path, tokenizer: Tokenizer) -> None:
    take(llm_c(tmp_path / "a.bin", [1, 2, 3]))
    dataset = TokenDataset.open(next(tmp_path.glob("out*")))
    with pytest.raises(UserError, match="taken over without a tokenizer; build it again with --tokenizer"):
        dataset.tokenizer()
    dataset.check_tokenizer(None)
    with pytest.raises(UserError, match="has no tokenizer; build all with --tokenizer, or all without"):
        dataset.check_tokenizer(tokenizer)
