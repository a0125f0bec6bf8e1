"""Reading files: what is no regular file is never waited for."""

import os
import socket
from pathlib import Path

import pytest

from qsweep.base.files import NotRegularFile, open_regular, read_regular, sha256_of


def test_a_regular_file_is_read(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"content")
    assert read_regular(file) == b"content"
    with open_regular(file) as stream:
        assert stream.read(4) == b"cont"


def test_a_link_to_a_regular_file_is_read(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert read_regular(tmp_path / "link") == b"content"


@pytest.mark.timeout(10)
def test_a_pipe_without_a_writer_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for read in (read_regular, sha256_of):
        with pytest.raises(NotRegularFile, match="is a pipe, not a regular file"):
            read(tmp_path / "pipe")


def test_devices_directories_and_sockets_are_refused(tmp_path):
    with pytest.raises(NotRegularFile, match="a device"):
        read_regular(Path("/dev/zero"))
    with pytest.raises(NotRegularFile, match="a directory"):
        read_regular(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        with pytest.raises(OSError):
            read_regular(tmp_path / "socket")
