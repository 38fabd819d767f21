"""A bucket of a local server that speaks S3, and one of a server that speaks as Google's."""

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

BUCKET = "tokens-of-texts"
SECRET = "a-secret-that-nobody-may-see"


class Server:
    """The bucket, and its server's address."""

    def __init__(self, endpoint: str) -> None:
        import boto3

        self.endpoint = endpoint
        self.client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")

    def upload(self, folder: Path) -> str:
        """Put a folder there; returns its address."""
        for path in folder.iterdir():
            self.client.put_object(Bucket=BUCKET, Key=f"data/{folder.name}/{path.name}", Body=path.read_bytes())
        return f"s3://{BUCKET}/data/{folder.name}"


@contextmanager
def bucket() -> Iterator[Server]:
    """Start the server; inside, the environment names it and holds its credentials."""
    server = pytest.importorskip("moto.server")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "somebody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        moto.start()
        host, port = moto.get_host_and_port()
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        made = Server(f"http://{host}:{port}")
        made.client.create_bucket(Bucket=BUCKET)
        yield made
        moto.stop()


@contextmanager
def google_bucket() -> Iterator[None]:
    """Start the server; inside, the environment names it."""
    emulator = pytest.importorskip("gcp_storage_emulator.server", reason="pip install gcp-storage-emulator")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = emulator.create_server("127.0.0.1", port, in_memory=True, default_bucket=BUCKET)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", f"http://127.0.0.1:{port}")
        server.start()
        yield
        server.stop()
