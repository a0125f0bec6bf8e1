"""Artifacts from a hub: the hub's own library against a small server on this machine, and its cache."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading

import pytest

NOBODY = "http://127.0.0.1:9"
COMMIT = "89abcdef0123456789abcdef0123456789abcdef"
FILES = {
    "org/ggufs": {
        "README.md": b"---\nbase_model: a/b\n---\n",
        "m-Q4_K_M.gguf": b"GGUF4",
        "m-Q8_0.gguf": b"GGUF8",
        "big/m-F16-00001-of-00002.gguf": b"GGUF1",
        "big/m-F16-00002-of-00002.gguf": b"GGUF2",
        "imatrix.dat": b"large",
    },
    "org/awq": {
        "README.md": b"",
        "config.json": b"{}",
        "model.safetensors": b"weights",
        "pytorch_model.bin": b"pickle",
        "original/consolidated.safetensors": b"again",
        "evil.py": b"code",
    },
    "org/pickles": {"config.json": b"{}", "pytorch_model.bin": b"pickle"},
}
CALL = """
import json, sys
from qsweep.base.errors import QsweepError
from qsweep.models.hub_artifacts import fetch_artifacts
for call in json.loads(sys.argv[1]):
    try:
        print("found", json.dumps([str(p) for p in fetch_artifacts(*call)]))
    except QsweepError as error:
        print("error", type(error).__name__, error)
"""


class Hub(http.server.BaseHTTPRequestHandler):
    """What of a hub's interface its library asks for."""

    fetched: list[str]

    def do_GET(self):
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/"):
            return self._api(*path.removeprefix("/api/models/").split("/"))
        if "/resolve/" not in path:
            return self._answer(404, b"")
        org, name, _, _, *rest = path.strip("/").split("/")
        content = FILES[f"{org}/{name}"]["/".join(rest)]
        type(self).fetched.append("/".join(rest))
        etag = hashlib.sha256(content).hexdigest()
        self._answer(200, content, **{"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"'})

    do_HEAD = do_GET

    def _api(self, org, name, kind="revision", revision="main", *_):
        repo = f"{org}/{name}"
        if repo == "org/gated":
            return self._answer(403, b"{}", **{"X-Error-Code": "GatedRepo"})
        if repo not in FILES:
            return self._answer(404, b"{}", **{"X-Error-Code": "RepoNotFound"})
        if revision not in ("main", COMMIT):
            return self._answer(404, b"{}", **{"X-Error-Code": "RevisionNotFound"})
        names = FILES[repo]
        tree = [
            {"type": "file", "path": n, "size": len(c), "oid": "0" * 40} for n, c in names.items()
        ]
        info = {"id": repo, "sha": COMMIT, "siblings": [{"rfilename": n} for n in names]}
        self._answer(200, json.dumps(tree if kind == "tree" else info).encode())

    def _answer(self, status, content, **headers):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server():
    Hub.fetched = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def fetch(cache, endpoint, *calls, offline="0"):
    """What a fresh process finds: the hub's library reads its environment when it is imported."""
    environment = {
        **os.environ,
        "HF_HOME": str(cache),
        "HF_HUB_CACHE": str(cache / "hub"),
        "HF_HUB_OFFLINE": offline,
        "HF_ENDPOINT": endpoint,
        "HF_HUB_DISABLE_XET": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", CALL, json.dumps(calls)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith(("found ", "error "))]
    assert len(lines) == len(calls), done.stderr
    return [_told(line) for line in lines]


def _told(line):
    kind, _, rest = line.partition(" ")
    return [p.partition(COMMIT)[2] for p in json.loads(rest)] if kind == "found" else rest


def test_only_what_is_needed_is_fetched_and_then_needs_no_network(server, cache):
    Hub.fetched.clear()
    parts = [f"/big/m-F16-0000{n}-of-00002.gguf" for n in (1, 2)]
    calls = ("org/ggufs", "*Q[48]*", "main"), ("org/ggufs", parts[1][1:], "main")
    assert fetch(cache, server, *calls) == [["/m-Q4_K_M.gguf", "/m-Q8_0.gguf"], parts]
    assert set(Hub.fetched) == {
        "README.md",
        "m-Q4_K_M.gguf",
        "m-Q8_0.gguf",
        *(p[1:] for p in parts),
    }
    Hub.fetched.clear()
    assert fetch(cache, server, ("org/awq", None, "main")) == [[""]]
    assert set(Hub.fetched) == {"README.md", "config.json", "model.safetensors"}
    calls = ("org/ggufs", "m-Q4_K_M.gguf", "main"), ("org/ggufs", "m-Q2_K.gguf", "main")
    for offline in ("1", "0"):
        found, line = fetch(cache, NOBODY, *calls, offline=offline)
        assert found == ["/m-Q4_K_M.gguf"]
        assert "the hub cache's (the hub cannot be reached) revision main has none such" in line


LINES = {
    ("org/ggufs", "m-Q4_K_S.gguf", "main"): "has none such; there are m-Q4_K_M.gguf, ",
    ("org/ggufs", "*IQ*", "main"): "quant.file=*IQ*: the hub's revision main has none such",
    ("org/ggufs", None, "main"): "has 4 GGUF files (big/m-F16-00001-of-00002.gguf, ",
    ("org/ggufs", "m-Q8_0.gguf", "v9"): "org/ggufs has no revision 'v9'",
    ("org/gated", None, "main"): "org/gated is gated; accept its licence on the hub and log in",
    ("org/none", None, "main"): "the hub has no model org/none (or it is private)",
    ("org/pickles", None, "main"): "has neither safetensors nor GGUF files",
    ("no name/at all", None, "main"): "is no repository's name; give ORG/NAME",
}


def test_what_a_hub_does_not_give_is_one_line(server, cache):
    for found, line in zip(fetch(cache, server, *LINES), LINES.values(), strict=True):
        assert line in found and "quant.repo=" in found


def test_an_unreachable_hub_and_nothing_in_the_cache(tmp_path):
    call = ("org/ggufs", "*", "main")
    (line,) = fetch(tmp_path, NOBODY, call)
    assert "the model hub cannot be reached for org/ggufs" in line
    (line,) = fetch(tmp_path, NOBODY, call, offline="1")
    assert "org/ggufs is not in the hub cache and HF_HUB_OFFLINE is set" in line
