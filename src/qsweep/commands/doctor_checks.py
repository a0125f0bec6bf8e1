"""What the doctor looks at: a function per subject, each quick and without side effects."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from qsweep.base.environment import environment
from qsweep.base.errors import QsweepError
from qsweep.commands.finding import Check, Finding, Places
from qsweep.formats.numbers import FORMATS
from qsweep.models.devices import torch_has_cuda

_TIMEOUT_S = 4.0
_LITTLE_GB, _TOO_LITTLE_GB = 20.0, 1.0
# What the main job imports.
_NEEDED = (
    *("torch", "transformers", "tokenizers", "safetensors", "numpy", "hydra-core", "omegaconf"),
    *("mlflow", "pydantic", "pyarrow", "psutil", "rich", "jinja2"),
)


@dataclass(frozen=True)
class BadPair:
    """Versions that are known not to work together: ``package`` in ``versions`` needs ``needs``."""

    package: str
    versions: str
    needs: str
    why: str


# Each was met in practice.
BAD_PAIRS = (
    BadPair("gptqmodel", ">=7.7", "torch>=2.14.1", "gptqmodel 7.7 is built on newer torch"),
    BadPair("gptqmodel", ">=7.7", "transformers>=5.20.2", "gptqmodel 7.7 needs its new interfaces"),
    BadPair("gptqmodel", ">=7.6,<7.7", "transformers>=5.14", "gptqmodel 7.6 needs its interfaces"),
    BadPair("hydra-core", "<1.4", "omegaconf<2.4", "hydra 1.3 does not know omegaconf 2.4"),
    BadPair("mlflow", ">=3", "mlflow!=3.18.0", "mlflow 3.18.0 was published without its core"),
    BadPair("optuna", ">=5", "sqlalchemy>=2", "optuna 5 stores studies through SQLAlchemy 2"),
    BadPair("llmcompressor", "<=0.14", "transformers<=5.17", "llm-compressor caps transformers"),
)


def python(places: Places) -> Iterator[Finding]:
    """The interpreter and the machine."""
    version = platform.python_version()
    good = sys.version_info[:2] in ((3, 11), (3, 12))
    fix = "" if good else "qsweep is tested with Python 3.11 and 3.12"
    status = "ok" if good else "error" if sys.version_info < (3, 11) else "warning"
    yield Finding("machine", "Python", status, version, fix)  # type: ignore[arg-type]
    facts = environment()
    cores, memory = facts["cpu_cores"], facts["memory_gb"]
    yield Finding("machine", "processor", "ok", f"{facts['cpu']}, {cores} cores, {memory} GB")


def gpus(places: Places) -> Iterator[Finding]:
    """GPUs as the driver and as torch see them."""
    found = environment()["gpus"]
    for gpu in found:
        yield Finding(
            "machine", "GPU", "ok", f"{gpu['name']}, {gpu['memory_gb']} GB, driver {gpu['driver']}"
        )
    if not found:
        yield Finding("machine", "GPU", "missing", "none: everything runs on the CPU")
        return
    if not torch_has_cuda():
        yield Finding(
            "machine", "CUDA", "warning", "the installed torch is built without CUDA",
            "install torch for your CUDA version first: pip install torch",
        )  # fmt: skip
        return
    import torch

    if torch.cuda.is_available():
        yield Finding("machine", "CUDA", "ok", f"torch sees {torch.cuda.device_count()} GPU(s)")
    else:
        yield Finding(
            "machine", "CUDA", "warning", "torch sees no GPU though the driver lists one",
            "look at CUDA_VISIBLE_DEVICES, and whether the driver is as new as torch's CUDA",
        )  # fmt: skip


def packages(places: Places) -> Iterator[Finding]:
    """What the main job imports, and versions that are known to clash."""
    for name in _NEEDED:
        version = _version(name)
        if version is None:
            yield Finding("packages", name, "error", "not installed", "pip install qsweep")
        else:
            yield Finding("packages", name, "ok", version)
    for pair, found in clashes({name: _version(name) for name in _clashing_names()}):
        yield Finding("packages", pair.package, "error" if pair.package in _NEEDED else "warning",
                      f"{pair.why}; here: {found}", f"pip install '{pair.needs}'")  # fmt: skip


def clashes(versions: dict[str, str | None]) -> Iterator[tuple[BadPair, str]]:
    """The known-bad pairs among installed versions, each with what was found."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    for pair in BAD_PAIRS:
        own = versions.get(pair.package)
        needed = Requirement(pair.needs)
        other = versions.get(needed.name)
        if own is None or other is None:
            continue
        if SpecifierSet(pair.versions).contains(own, prereleases=True) and not (
            needed.specifier.contains(other, prereleases=True)
        ):
            yield pair, f"{pair.package} {own}, {needed.name} {other}"


def backends(places: Places) -> Iterator[Finding]:
    """Every quantizer backend, by its own account of its version."""
    yield Finding("quantizers", "rtn; gptq, gptaq, awq (native)", "ok", "part of qsweep")
    version = _version("gptqmodel")
    name = "gptq, awq (gptqmodel)"
    if version is None:
        yield Finding("quantizers", name, "missing", "a second opinion, quant.backend=gptqmodel",
                      'pip install "qsweep[gptqmodel]"')  # fmt: skip
    else:
        yield Finding("quantizers", name, "ok", version)
    yield _gguf()


def number_formats(places: Places) -> Iterator[Finding]:
    """What ``format=`` writes, by the library whose containers hold it."""
    held: dict[str, list[str]] = {"compressed-tensors": [], "bitsandbytes": [], "gguf": []}
    for number in FORMATS.values():
        if number.containers is not None:
            held[number.containers[0]].append(number.name)
    for package, names in held.items():
        version, what = _version(package), ", ".join(names)
        if version is None:
            yield Finding(
                "number formats", package, "missing", what, f'pip install "qsweep[{package}]"'
            )
        else:
            yield Finding("number formats", package, "ok", f"{version}: {what}")


def environments(places: Places) -> Iterator[Finding]:
    """Libraries that conflict with qsweep's own, each in an environment that is made on demand."""
    from qsweep.quantizers.environments.choice import EnvChoice
    from qsweep.quantizers.environments.interpreter import find_base
    from qsweep.quantizers.environments.spec import spec_names

    choice = EnvChoice(folder=places.outputs / "envs")
    for name in spec_names():
        made = choice.environment(name)
        spec, state, manifest = made.spec, made.state(), made.manifest()
        library = f"{spec.library} {spec.pins().get(spec.library, '')}".rstrip()
        library += ", CUDA only" if spec.cuda else ""
        if state == "ready":
            python = (manifest or {}).get("python", "unknown")
            yield Finding("environments", name, "ok", f"made: {library}, Python {python}")
            continue
        why = {"absent": "not made", "incomplete": "half made", "outdated": "made from other pins"}
        command = choice.command(name)
        try:
            find_base(spec)
        except QsweepError:
            # None of the Pythons here will do: the command needs one.
            command += " --python PATH"
            library += f", needs Python {spec.python}"
        yield Finding("environments", name, "missing", f"{why[state]}: {library}", command)


def runtimes(places: Places) -> Iterator[Finding]:
    """What can serve or time an artifact here."""
    yield Finding("runtimes", "transformers", "ok", _version("transformers") or "not installed")
    if absent := [name for name in ("optimum", "gptqmodel") if _version(name) is None]:
        yield Finding("runtimes", "transformers, for GPTQ", "missing",
                      "it loads GPTQ through optimum and gptqmodel, AWQ through gptqmodel",
                      f"pip install {' '.join(absent)}")  # fmt: skip
    for name in ("vllm", "sglang", "exllamav3"):
        version = _version(name)
        fix = "" if version else f"pip install {name} (an environment of its own is wise)"
        yield Finding("runtimes", name, "ok" if version else "missing", version or "-", fix)
    for program, where in (
        ("llama-server", "https://github.com/ggml-org/llama.cpp"),
        ("ollama", "https://ollama.com/download"),
    ):
        path = shutil.which(program)
        fix = "" if path else where
        yield Finding("runtimes", program, "ok" if path else "missing", path or "-", fix)


def sandbox(places: Places) -> Iterator[Finding]:
    """Whether code that a model wrote can be kept in a sandbox, and its memory bounded."""
    from qsweep.tasks.sandbox import find_sandbox, memory_bounds
    from qsweep.tasks.task import TaskUnavailable

    try:
        found = find_sandbox()
    except TaskUnavailable:
        yield Finding("sandbox", "bwrap", "missing", "no sandbox: code that models write is not run",
                      "apt-get install bubblewrap")  # fmt: skip
        return
    bounds = memory_bounds()
    words = f"works; memory bounded by {' and '.join(bounds)}" if bounds else "works"
    yield Finding("sandbox", found.name, "ok", words)


def disk(places: Places) -> Iterator[Finding]:
    """Room and rights where results go."""
    folder = places.outputs
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 1e9
    room = f"{free:.1f} GB free at {places.outputs}"
    if not os.access(folder, os.W_OK):
        yield Finding("storage", "outputs", "error", f"{folder} cannot be written",
                      "choose another with outputs_dir=DIR")  # fmt: skip
    if free < _TOO_LITTLE_GB:
        yield Finding("storage", "disk", "error", room, "qsweep prune, or outputs_dir=DIR")
    elif free < _LITTLE_GB:
        yield Finding("storage", "disk", "warning", room, "an 8B model needs 16 GB and its results")
    else:
        yield Finding("storage", "disk", "ok", room)


def shared(places: Places) -> Iterator[Finding]:
    """Whether the copy of the store that machines share can be read, and written where it is to be."""
    from qsweep.commands.shared import shared_store

    name = "shared store"
    try:
        remote = shared_store(places.outputs, places.remote, push=None).remote
        if remote is None:
            yield Finding("storage", name, "missing", "none: each machine has its results alone",
                          "store.remote=URL, with s3: pip install \"qsweep[s3]\"")  # fmt: skip
            return
        started = time.perf_counter()
        remote.probe_reading()
        if remote.push:
            remote.probe_writing()
    except QsweepError as error:
        yield Finding("storage", name, "warning", str(error))
        return
    took = time.perf_counter() - started
    done = "written and read back" if remote.push else "read, not written to (store.push=false),"
    yield Finding("storage", name, "ok", f"{remote.url}: {done} in {took:.2f} s")


def hub(places: Places) -> Iterator[Finding]:
    """Whether models and data sets can be fetched."""
    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        yield Finding("network", "model hub", "missing", "switched off by HF_HUB_OFFLINE",
                      "unset it, or use model.path=DIR")  # fmt: skip
    elif trouble := _unreachable(address):
        yield Finding("network", "model hub", "missing", f"{address}: {trouble}",
                      "model.path=DIR and corpus=file need no network")  # fmt: skip
    else:
        yield Finding("network", "model hub", "ok", address)


def tracker(places: Places) -> Iterator[Finding]:
    """Whether results can be logged."""
    from qsweep.base.databases import DatabaseError, check_sqlite, sqlite_path
    from qsweep.tracking.settings import TrackingConfig, public_uri, resolved_uri

    try:
        uri = resolved_uri(TrackingConfig(uri=places.tracking).uri, places.outputs)
    except QsweepError as error:
        yield Finding("network", "tracker", "warning", str(error))
        return
    label, trouble = public_uri(uri), None
    later = "sweeps run all the same; qsweep sync logs them later"
    if (database := sqlite_path(uri)) is not None:
        label += "" if database.exists() else " (made by the first sweep)"
        try:
            check_sqlite(database, ("experiments", "registered_models"))
        except DatabaseError as error:
            trouble = str(error)
    else:
        trouble = _unreachable(uri)
    if trouble:
        yield Finding("network", "tracker", "warning", f"{label}: {trouble}", later)
    else:
        yield Finding("network", "tracker", "ok", label)


CHECKS: tuple[Check, ...] = (
    python, gpus, packages, backends, number_formats, environments, runtimes, sandbox, disk, shared,
    hub, tracker,
)  # fmt: skip


def _gguf() -> Finding:
    name = "gguf (llama.cpp)"
    from qsweep.formats.gguf.converter import converter_dir, package_version

    if _version("gguf") is None or importlib.util.find_spec("llama_cpp") is None:
        compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
        need = "" if compiler else ", after a C++ compiler: apt-get install g++"
        return Finding("quantizers", name, "missing", "not installed",
                       f'pip install "qsweep[gguf]"{need}')  # fmt: skip
    try:
        converter_dir()
    except QsweepError as error:
        command = str(error).rpartition(": ")[2]
        return Finding("quantizers", name, "missing", "its converter is not installed", command)
    return Finding("quantizers", name, "ok", package_version())


def _clashing_names() -> set[str]:
    from packaging.requirements import Requirement

    return {pair.package for pair in BAD_PAIRS} | {Requirement(p.needs).name for p in BAD_PAIRS}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _unreachable(address: str) -> str | None:
    parts = urlsplit(address)
    ports = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
    try:
        port = parts.port or ports.get(parts.scheme.partition("+")[0])
        if parts.hostname is None or port is None:
            return None
        with socket.create_connection((parts.hostname, port), timeout=_TIMEOUT_S):
            return None
    except (OSError, ValueError) as error:
        return _gist(error)


def _gist(error: Exception) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split())
