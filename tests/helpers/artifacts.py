"""Artifacts as somebody else might have made them, and bad ones."""

import json
import os
import shutil
from pathlib import Path

from qsweep.models.facts import read_facts
from qsweep.models.source import SourceModel
from qsweep.quantizers.rtn import RTN


def rounded(model: Path, out: Path, bits: int = 4, group_size: int = 64) -> Path:
    """A checkpoint in GPTQ's container, made from a model by rounding."""
    out.mkdir(parents=True)
    facts = read_facts(model, model.name)
    RTN(bits, group_size, True).quantize(SourceModel(facts, "cpu"), None, out)
    return out


def copied(source: Path, out: Path, **config) -> Path:
    """A copy of a checkpoint whose ``config.json`` says something else."""
    shutil.copytree(source, out)
    return edited(out, "config.json", lambda content: content | config)


def edited(folder: Path, name: str, change) -> Path:
    """A folder of which one JSON file was changed in place."""
    file = folder / name
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    return folder


def bad_artifacts(root: Path, good: Path) -> dict[str, tuple[Path, str]]:
    """Paths at which no artifact is, each with what is said of it."""
    root.mkdir(parents=True, exist_ok=True)

    def folder(name, **files):
        (root / name).mkdir()
        for file, content in files.items():
            (root / name / file.replace("__", ".")).write_bytes(content)
        return root / name

    config = (good / "config.json").read_bytes()
    plain = json.loads(config)
    plain.pop("quantization_config", None)
    plain = json.dumps(plain).encode()
    pickled = folder("pickled", config__json=plain, pytorch_model__bin=b"\x80\x02}q\x00.")
    (root / "model.pt").write_bytes(b"\x80\x02}q\x00.")
    (root / "notes.txt").write_bytes(b"nothing")
    (root / "no.gguf").write_bytes(b"text that is no model")
    cut = root / "cut"
    shutil.copytree(good, cut)
    with (cut / "model.safetensors").open("r+b") as file:
        file.truncate(os.path.getsize(cut / "model.safetensors") // 2)
    bomb = root / "bomb"
    shutil.copytree(good, bomb)
    (bomb / "model.safetensors").write_bytes((1 << 40).to_bytes(8, "little") + b"{}")
    os.mkfifo(root / "pipe.gguf")
    return {
        "empty": (folder("empty"), "neither an artifact of a store nor a checkpoint"),
        "pickled": (pickled, "pickled"),
        "a pickle": (root / "model.pt", "pickled weights"),
        "a text": (root / "notes.txt", "neither a GGUF file nor a checkpoint's directory"),
        "no GGUF": (root / "no.gguf", "GGUF"),
        "cut": (cut, "not a whole safetensors file"),
        "bomb": (bomb, "its header is too long"),
    }
