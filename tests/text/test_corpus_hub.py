"""Data sets by the real loading code, offline, on a hub cache laid out as the hub's library does."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import yaml

CONF = Path(__file__).resolve().parents[2] / "conf"
COMMIT = "89abcdef0123456789abcdef0123456789abcdef"
CHAT = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]


class Hub:
    """A hub cache: per repository blobs, snapshots of links to them, and a reference."""

    def __init__(self, root: Path):
        self.cache = root / "hub"
        self.environment = {
            **os.environ,
            "HF_HOME": str(root / "home"),
            "HF_HUB_CACHE": str(self.cache),
            "HF_DATASETS_CACHE": str(root / "datasets"),
            "HF_HUB_OFFLINE": "1",
        }

    def add(self, repository: str, files: dict[str, bytes]):
        base = self.cache / f"datasets--{repository.replace('/', '--')}"
        snapshot = base / "snapshots" / COMMIT
        (base / "refs").mkdir(parents=True, exist_ok=True)
        (base / "blobs").mkdir(exist_ok=True)
        (base / "refs" / "main").write_text(COMMIT)
        for name, content in files.items():
            blob = base / "blobs" / f"{len(list((base / 'blobs').iterdir())):040x}"
            blob.write_bytes(content)
            link = snapshot / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(blob, link.parent))

    def load(self, configs: dict[str, dict], **environment):
        """Documents or the error of every corpus, by name, from one fresh process."""
        script = textwrap.dedent(
            """
            import json, sys, time
            from qsweep.text.corpora import CorpusConfig, load_documents
            from qsweep.base.errors import QsweepError
            found = {}
            for name, fields in json.loads(sys.argv[1]).items():
                started = time.monotonic()
                try:
                    found[name] = load_documents(CorpusConfig(name, "datasets", **fields))
                except QsweepError as error:
                    found[name] = f"{type(error).__name__}: {error}"
                found[name] = [found[name], time.monotonic() - started]
            print("result", json.dumps(found))
            """
        )
        result = subprocess.run(
            [sys.executable, "-c", script, json_text(configs)],
            capture_output=True,
            text=True,
            env=self.environment | environment,
            timeout=120,
        )
        lines = [line for line in result.stdout.splitlines() if line.startswith("result ")]
        assert lines, result.stderr
        import json

        return json.loads(lines[0].removeprefix("result "))


def json_text(value):
    import json

    return json.dumps(value)


def parquet(rows) -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


def card(*configs: tuple[str, str, str]) -> bytes:
    """A data set's README, which names the files of each configuration's splits."""
    entries = [
        {"config_name": name, "data_files": [{"split": split, "path": path}]}
        for name, split, path in configs
    ]
    return f"---\n{yaml.safe_dump({'configs': entries})}---\n".encode()


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """What conf/corpus names, in miniature and in the real repositories' layout."""
    hub = Hub(tmp_path_factory.mktemp("hub"))
    wikitext = [{"text": ""}, {"text": " = Title = \n"}, {"text": " Body of an article . \n"}]
    hub.add(
        "Salesforce/wikitext",
        {
            "README.md": card(
                ("wikitext-2-raw-v1", "test", "wikitext-2-raw-v1/test-*"),
                ("wikitext-103-raw-v1", "test", "wikitext-103-raw-v1/test-*"),
            ),
            "wikitext-2-raw-v1/test-00000-of-00001.parquet": parquet(wikitext),
            "wikitext-103-raw-v1/test-00000-of-00001.parquet": parquet(wikitext[1:]),
        },
    )
    import gzip

    rows = "".join(json_text({"text": f"Document {n}.", "url": "x"}) + "\n" for n in range(1200))
    hub.add("allenai/c4", {"en/c4-validation.00000-of-00008.json.gz": gzip.compress(rows.encode())})
    hub.add(
        "HuggingFaceH4/ultrachat_200k",
        {
            "README.md": card(("default", "test_sft", "data/test_sft-*")),
            "data/test_sft-00000-of-00001.parquet": parquet([{"messages": CHAT}] * 3),
        },
    )
    hub.add(
        "wikimedia/wikipedia",
        {
            "README.md": card(("20231101.zh", "train", "20231101.zh/train-*")),
            "20231101.zh/train-00000-of-00001.parquet": parquet(
                [{"text": "数学是研究数量的学科。"}]
            ),
        },
    )
    rows = json_text({"content": "def f():\n    return 1\n"}) + "\n"
    hub.add(
        "codeparrot/codeparrot-clean-valid",
        {"file-000000000001.json.gz": gzip.compress(rows.encode())},
    )
    hub.add(
        "ptb-text-only/ptb_text_only",
        {
            "README.md": card(("penn_treebank", "test", "penn_treebank/test-*")),
            "penn_treebank/test-00000-of-00001.parquet": parquet(
                [{"sentence": "no it was n't black monday"}] * 2
            ),
        },
    )
    return hub


def choices():
    """The corpora in conf/ that come from the hub, as the fields of a CorpusConfig."""
    found = {}
    for path in sorted((CONF / "corpus").glob("*.yaml")):
        ((name, fields), *_) = yaml.safe_load(path.read_text()).items()
        if fields.pop("source") == "datasets":
            found[name] = fields
    return found


def test_every_hub_corpus_of_conf_loads_from_the_cache(hub):
    expected = {
        "wikitext2": ["", " = Title = \n", " Body of an article . \n"],
        "wikitext103": [" = Title = \n", " Body of an article . \n"],
        "c4": [f"Document {n}." for n in range(1100)],
        "ultrachat": ["Hi.\n\nHello."] * 3,
        "ultrachat_answers": [json.dumps(CHAT)] * 3,
        "chinese": ["数学是研究数量的学科。"],
        "code": ["def f():\n    return 1\n"],
        "ptb": ["no it was n't black monday"] * 2,
    }
    found = hub.load(choices())
    assert {name: documents for name, (documents, _) in found.items()} == expected


def test_what_cannot_be_had_is_one_line(hub):
    wikitext = choices()["wikitext2"]
    found = hub.load(
        {
            "absent": {"dataset": "someone/else"},
            "split": {**wikitext, "split": "tset"},
            "field": {**wikitext, "field": "txt"},
            "configuration": {**wikitext, "config": "wikitext-2"},
            "revision": {**wikitext, "revision": "v9"},
        }
    )
    lines = {name: line for name, (line, _) in found.items()}
    assert all(isinstance(line, str) and "\n" not in line for line in lines.values())
    assert "is not in the cache and the hub cannot be reached" in lines["absent"]
    assert "corpus=file corpus.path=FILE" in lines["absent"]
    assert lines["split"].startswith("ConfigError") and "no split 'tset'" in lines["split"]
    assert lines["field"].startswith("ConfigError")
    assert "no field 'txt'; did you mean 'text'?" in lines["field"]
    assert lines["configuration"].startswith("ConfigError")
    assert "wikitext-2-raw-v1" in lines["configuration"]
    assert "is not in the cache" in lines["revision"]


def test_an_unreachable_hub_is_told_within_seconds(hub):
    # a closed port answers at once that nobody is there; what is cached is read all the same
    found = hub.load(
        {"absent": {"dataset": "someone/else"}, "wikitext2": choices()["wikitext2"]},
        HF_HUB_OFFLINE="0",
        HF_ENDPOINT="http://127.0.0.1:9",
    )
    line, seconds = found["absent"]
    assert "hub cannot be reached" in line
    assert seconds < 30
    assert len(found["wikitext2"][0]) == 3


def test_a_local_folder_is_a_data_set_too(hub, tmp_path):
    (tmp_path / "train.jsonl").write_text('{"text": "local"}\n')
    found = hub.load({"local": {"dataset": str(tmp_path), "split": "train"}})
    assert found["local"][0] == ["local"]
