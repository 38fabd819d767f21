"""Datasets at addresses, read from a local server that speaks S3, and one that speaks plain HTTP."""

import os
import pickle
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from looplm.data import remote
from looplm.data.dataset import TokenDataset
from looplm.data.inspect import describe
from looplm.data.remote import RemoteArray, store_spec
from looplm.data.window import SplitWindows
from looplm.data.writer import build_dataset
from looplm.errors import UserError
from tests.data.bucket import BUCKET, SECRET, Server, bucket


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with bucket() as made:
        yield made


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int | None]]:
    """What is asked of servers from now on."""
    asked: list[tuple[str, int, int | None]] = []
    original = remote.RemoteFolder.read_ranges

    def read_ranges(self, ranges):
        asked.extend(ranges)
        return original(self, ranges)

    monkeypatch.setattr(remote.RemoteFolder, "read_ranges", read_ranges)
    return asked


@pytest.mark.parametrize("cache_bytes", [1e9, 0])
@pytest.mark.parametrize("masked", [False, True])
def test_it_reads_what_the_local_copy_reads(
    server, write_dataset, tmp_path: Path, monkeypatch, requests, cache_bytes: float, masked: bool
) -> None:
    monkeypatch.setattr(remote, "BLOCK_BYTES", 64)
    lengths = [40, 3, 57, 100]
    masks = [[n % 3 == 0 for n in range(length)] for length in lengths] if masked else None
    local = write_dataset(lengths, shard_bytes=2 * 70, masks=masks)
    address = server.upload(local.path)
    opened = TokenDataset.open(address, cache=tmp_path / "cache", cache_bytes=cache_bytes)
    assert (opened.fingerprint, opened.name, opened.location) == (local.fingerprint, local.path.name, address)
    assert opened.tokenizer().fingerprint == local.tokenizer().fingerprint
    opened.verify()
    # Twice: what is kept must be what was fetched. Pickled: other processes connect by themselves.
    for dataset in (opened, pickle.loads(pickle.dumps(opened))):
        for start in range(0, 200, 17):
            for stop in range(start, 201, 61):
                np.testing.assert_array_equal(dataset.tokens(start, stop), local.tokens(start, stop))
        ids = np.arange(len(SplitWindows(local, 9)))
        for name, value in SplitWindows(local, 9).read(ids).items():
            np.testing.assert_array_equal(SplitWindows(dataset, 9).read(ids)[name], value)
    requests.clear()
    SplitWindows(opened, 9).read(ids)
    assert bool(requests) == (cache_bytes == 0)
    assert (tmp_path / "cache" / "datasets" / local.fingerprint[:16] / "blocks").exists() == (cache_bytes > 0)


def test_only_what_is_needed_is_fetched(server, write_dataset, tmp_path: Path, requests) -> None:
    address = server.upload(write_dataset([5000, 5000]).path)
    dataset = TokenDataset.open(address, cache=tmp_path, cache_bytes=0)
    requests.clear()
    SplitWindows(dataset, 10).read(np.array([3, 700]))
    assert requests == [("tokens-00000.bin", 60, 82), ("tokens-00000.bin", 14000, 14022)]


def test_a_block_that_was_half_written_is_not_taken(server, write_dataset, tmp_path: Path, monkeypatch) -> None:
    local = write_dataset([300])
    dataset = TokenDataset.open(server.upload(local.path), cache=tmp_path)

    def stop(source: object, target: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(remote.os, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            dataset.tokens(0, 300)
    assert not any(path.is_file() for path in (dataset.path / "blocks").rglob("*"))
    np.testing.assert_array_equal(dataset.tokens(0, 300), local.tokens(0, 300))


def test_threads_fetch_a_block_once(server, write_dataset, tmp_path: Path, requests) -> None:
    dataset = TokenDataset.open(server.upload(write_dataset([300]).path), cache=tmp_path)
    requests.clear()
    threads = [threading.Thread(target=dataset.tokens, args=(n, n + 50)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(requests) == 1


def test_threads_do_not_wait_for_blocks_of_others(server, write_dataset, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(remote, "BLOCK_BYTES", 64)
    local = write_dataset([300])
    dataset = TokenDataset.open(server.upload(local.path), cache=tmp_path)
    together, fetch, found = threading.Barrier(2, timeout=30), RemoteArray._fetch, {}

    def fetch_together(self, spans):
        together.wait()
        return fetch(self, spans)

    def read(start: int) -> None:
        found[start] = dataset.tokens(start, start + 20)

    monkeypatch.setattr(RemoteArray, "_fetch", fetch_together)
    threads = [threading.Thread(target=read, args=(start,)) for start in (0, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for start in (0, 200):
        np.testing.assert_array_equal(found[start], local.tokens(start, start + 20))


def test_a_failure_reaches_all_who_wait(server, write_dataset, tmp_path: Path, monkeypatch) -> None:
    dataset = TokenDataset.open(server.upload(write_dataset([300]).path), cache=tmp_path)
    begun, go_on = threading.Event(), threading.Event()

    def fail(self, spans):
        begun.set()
        go_on.wait(30)
        raise UserError("gone")

    failed: list[str] = []

    def read() -> None:
        try:
            dataset.tokens(0, 20)
        except UserError as error:
            failed.append(str(error))

    with monkeypatch.context() as patch:
        patch.setattr(RemoteArray, "_fetch", fail)
        threads = [threading.Thread(target=read) for _ in range(2)]
        threads[0].start()
        begun.wait(30)
        threads[1].start()
        go_on.set()
        for thread in threads:
            thread.join()
    assert failed == ["gone"] * 2
    assert dataset.tokens(0, 20).size == 20


def test_what_is_wrong_is_said(server, write_dataset, tmp_path: Path) -> None:
    local = write_dataset([30, 40])
    address = server.upload(local.path)
    with pytest.raises(UserError, match=r"^s3://.*/nothing has no manifest\.json"):
        TokenDataset.open(f"s3://{BUCKET}/nothing", cache=tmp_path)
    key = f"data/{local.path.name}/tokens-00000.bin"
    data = (local.path / "tokens-00000.bin").read_bytes()
    server.client.put_object(Bucket=BUCKET, Key=key, Body=data[:-2])
    with pytest.raises(UserError, match=r"cannot read s3://"):
        TokenDataset.open(address, cache=tmp_path)
    server.client.put_object(Bucket=BUCKET, Key=key, Body=data + b"x")
    with pytest.raises(UserError, match=r"tokens-00000\.bin has more than 140 bytes"):
        TokenDataset.open(address, cache=tmp_path)
    server.client.put_object(Bucket=BUCKET, Key=key, Body=data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(UserError, match=r"tokens-00000\.bin was changed or damaged"):
        TokenDataset.open(address, cache=tmp_path).verify()
    server.client.delete_object(Bucket=BUCKET, Key=key)
    with pytest.raises(UserError, match=r"tokens-00000\.bin is missing"):
        TokenDataset.open(address, cache=tmp_path)
    server.client.put_object(Bucket=BUCKET, Key=f"data/{local.path.name}/documents.bin", Body=bytes(24))
    server.client.put_object(Bucket=BUCKET, Key=key, Body=data)
    with pytest.raises(UserError, match=r"documents\.bin was changed or damaged"):
        TokenDataset.open(address, cache=tmp_path / "new")


def test_a_cache_that_cannot_be_written(server, write_dataset, tmp_path: Path) -> None:
    address = server.upload(write_dataset([30]).path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot keep documents\.bin in the cache .*; set data\.cache_dir"):
        TokenDataset.open(address, cache=tmp_path / "file")


def test_plain_http(write_dataset, tmp_path: Path) -> None:
    class Ranges(SimpleHTTPRequestHandler):
        """Python's server knows no byte ranges."""

        def do_GET(self) -> None:
            path = Path(self.translate_path(self.path))
            if not path.is_file():
                self.send_error(404)
                return
            data = path.read_bytes()
            begin, _, end = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
            start, stop = int(begin), min(int(end or len(data) - 1) + 1, len(data))
            self.send_response(206 if "Range" in self.headers else 200)
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
            self.send_header("Content-Length", str(stop - start))
            self.end_headers()
            self.wfile.write(data[start:stop])

        def log_message(self, *_: object) -> None:
            pass

    local = write_dataset([30, 40])
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Ranges, directory=str(local.path.parent))) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{http.server_address[1]}/{local.path.name}"
        for cache_bytes in (1e9, 0):
            dataset = TokenDataset.open(address, cache=tmp_path / "cache", cache_bytes=cache_bytes)
            np.testing.assert_array_equal(dataset.tokens(7, 65), local.tokens(7, 65))
        http.shutdown()


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:1/x", "s3://bucket/x?endpoint=http://127.0.0.1:1&anonymous=true"]
)
def test_a_server_that_is_not_there(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FIRST_RETRIES", remote.FIRST_RETRIES | {"initial_delay": "10ms", "max_delay": "10ms"})
    with pytest.raises(UserError, match=f"cannot read {address.partition('?')[0]}: ") as error:
        TokenDataset.open(address, cache=tmp_path)
    assert "127.0.0.1" in str(error.value)


def test_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ENDPOINT_URL", "ENDPOINT_URL_S3", "REGION", "DEFAULT_REGION", "ACCESS_KEY_ID"):
        monkeypatch.delenv(f"AWS_{name}", raising=False)
    plain = {"driver": "s3", "bucket": "bucket", "path": "a/b/"}
    assert store_spec("s3://bucket/a/b/") == plain
    assert store_spec("s3://bucket") == plain | {"path": ""}
    assert store_spec("gs://bucket/a") == {"driver": "gcs", "bucket": "bucket", "path": "a/"}
    assert store_spec("https://host:1/a") == {"driver": "http", "base_url": "https://host:1", "path": "/a/"}
    named = {"endpoint": "http://host:9000", "aws_region": "us-east-1"}
    assert store_spec("s3://bucket/a/b?endpoint=http://host:9000") == plain | named
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://host:9000")
    monkeypatch.setenv("AWS_REGION", "here")
    assert store_spec("s3://bucket/a/b") == plain | named | {"aws_region": "here"}
    there = {"aws_region": "there", "aws_credentials": {"type": "anonymous"}}
    assert store_spec("s3://bucket/a/b?region=there&anonymous=true") == plain | named | there


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("ftp://host/a", "ftp://host/a: unknown scheme ftp://; use a folder, or one of s3, gs, http, https"),
        ("s3:///a", "s3:///a names no bucket; write s3://BUCKET/FOLDER"),
        (f"s3://me:{SECRET}@bucket/a", "s3://bucket/a is given with credentials, "),
        (f"s3://bucket/a?endpoint=http://me:{SECRET}@host", "s3://bucket/a is given with credentials, "),
        (f"https://me:{SECRET}@host/a", "https://host/a is given with credentials, "),
        (f"https://host/a?X-Amz-Signature={SECRET}", "https://host/a: unknown option X-Amz-Signature in the address; "),
    ],
)
def test_an_address_with_a_mistake(address: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        store_spec(address)
    assert str(error.value).startswith(message)
    assert SECRET not in str(error.value)


def test_an_empty_slice_needs_no_server() -> None:
    array = RemoteArray(remote.RemoteFolder("s3://nowhere/a"), "tokens-00000.bin", 20, np.dtype("<u2"), None)
    assert array[3:3].size == 0


def test_a_look_inside_and_the_two_files_of_a_hugging_face_tokenizer(
    server: Server, emails: Path, hf_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("looplm.data.dataset.default_cache", lambda: tmp_path / "cache")
    build_dataset([emails], hf_folder, tmp_path / "with_hf")
    address = server.upload(tmp_path / "with_hf")
    dataset = TokenDataset.open(address)
    assert dataset.tokenizer().fingerprint == TokenDataset.open(tmp_path / "with_hf").tokenizer().fingerprint
    here, there = (list(describe(path, 2, verify=True)) for path in (tmp_path / "with_hf", address))
    assert there[0].line.startswith(f"dataset {address}: ")
    assert there[1:] == here[1:]


def test_no_proxy_is_asked_for_a_server_on_this_machine(server, write_dataset, tmp_path: Path, monkeypatch) -> None:
    """As where a company's proxy is in the environment, and an emulator of S3 or GCS on localhost."""
    local = write_dataset([40, 3])
    address = server.upload(local.path)
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("NO_PROXY", "example.org")
    np.testing.assert_array_equal(TokenDataset.open(address, cache=tmp_path).tokens(0, 43), local.tokens(0, 43))
    for name in ("no_proxy", "NO_PROXY"):
        assert os.environ[name].split(",") == ["example.org", "localhost", "127.0.0.1", "::1"]
