"""A real S3 server of our own, on loopback."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

# What the server takes for an account's; nothing in them is a secret.
KEY_ID, SECRET = "test-key-id", "test-secret-access-key"


class S3Server:
    """A server that runs until it is stopped, and may be started again on its port, empty."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(300):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return
            time.sleep(0.1)
        raise AssertionError("moto's server does not answer")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @property
    def variables(self) -> dict[str, str]:
        """The environment in which clients find it."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def client(self):
        """boto3's client of it."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=KEY_ID,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
        )


def require_parts() -> None:
    """Skip where there is no server, or no driver."""
    for package, extra in (("s3fs", "s3"), ("moto", "cluster"), ("boto3", "cluster")):
        pytest.importorskip(package, reason=f'pip install "qsweep[{extra}]"')


@contextlib.contextmanager
def running() -> Iterator[S3Server]:
    """A server, with the environment of this process set so that clients find it."""
    require_parts()
    server = S3Server()
    before = {name: os.environ.get(name) for name in server.variables}
    os.environ.update(server.variables)
    server.start()
    try:
        yield server
    finally:
        server.stop()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """One server for all tests of this process."""
    with running() as server:
        yield server


_buckets = iter(range(1, 10**6))


@pytest.fixture
def s3_bucket(s3_server: S3Server) -> str:
    """The URL of a bucket of this test's own."""
    name = f"bucket-{os.getpid()}-{next(_buckets)}"
    s3_server.client().create_bucket(Bucket=name)
    return f"s3://{name}"
