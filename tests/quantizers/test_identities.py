"""What of a quantizer is in a store's keys stays as it is: a changed line makes artifacts anew.

``identities.json`` holds a line per quantizer and options. After a change that is meant, write it
again: ``python tests/quantizers/test_identities.py``.
"""

import contextlib
import importlib
import importlib.metadata
import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

from qsweep.base.errors import ConfigError
from qsweep.base.version import __version__
from qsweep.formats import numbers
from qsweep.quantizers.environments.choice import EnvChoice

FILE = Path(__file__).with_name("identities.json")
WORKER = "a worker\n"
CUSTOM = {"method": "mine", "settings": {"bits": 3}, "env": EnvChoice(name="autoround")}
GROUPED = {"bits": (2, 5, 8), "group_size": (32, -1), "sym": (None, True, False, "auto")}
ORDERED = {"desc_act": (False, True), "act_group_aware": (False, True)}
# Of each class, groups of options whose combinations are all tried.
GRIDS: dict[str, list[dict[str, tuple[Any, ...]]]] = {
    "none.Unquantized": [{}],
    "rtn.RTN": [GROUPED],
    "native.NativeGPTQ": [
        GROUPED,
        ORDERED
        | {"group_size": (64, -1), "gptaq_alpha": (0.0, 0.5), "sequential": (False, "auto")},
        {"bits": (4, 8), "scale_search": ("range", "mse", "loss"), "damp_percent": (0.01,)},
        {"bits": (3,), "gptq_output_hessian": (False, True)},
    ],
    "native.NativeAWQ": [GROUPED, {"clip": (False, True)}],
    "gptqmodel.GPTQ": [GROUPED, ORDERED | {"group_size": (64, -1), "damp_percent": (0.1,)}],
    "gptqmodel.AWQ": [GROUPED],
    "isolated.AutoGPTQ": [GROUPED, ORDERED | {"damp_percent": (0.1,)}],
    "isolated.AutoAWQ": [GROUPED],
    "isolated.LLMCompressorRTN": [GROUPED],
    "isolated.LLMCompressorGPTQ": [GROUPED, ORDERED | {"group_size": (64, -1)}],
    "isolated.LLMCompressorAWQ": [GROUPED],
    "isolated.AutoRound": [
        GROUPED,
        {"export": ("gptq", "awq", "gguf"), "bits": (2, 4), "iters": (20,), "seed": (0, 3)},
        {"export": ("gguf",), "type": (None, "q4_0", "Q3_K_L"), "bits": (7, 8)},
    ],
    "isolated.Custom": [{"writes": ("gptq", "awq", "compressed-tensors")}],
    "gguf.GGUF": [
        {"bits": (2, 4, 7), "imatrix": (False, True)},
        {"type": ("q4_0", "Q8_0", "IQ2_XS"), "bits": (None, 4), "imatrix": (False, True)},
    ],
}


def identities(worker: Path) -> list[str]:
    """Every quantizer's identity, a line of JSON each, versions of libraries by their names."""
    lines = []
    for name, grids in GRIDS.items():
        module, _, kind = name.partition(".")
        cls = getattr(importlib.import_module(f"qsweep.quantizers.{module}"), kind)
        for grid in grids:
            for values in itertools.product(*grid.values()):
                options = dict(zip(grid, values, strict=True))
                more: dict[str, Any] = {}
                if kind == "Custom":
                    more = CUSTOM | {"worker": worker}
                lines.append(_identity(name, options, cls, more))
    return list(dict.fromkeys(lines))


def _identity(name: str, options: dict[str, Any], cls: Any, more: dict[str, Any]) -> str:
    try:
        made = cls(**(more | options))
    except ConfigError as error:
        return json.dumps([name, options, str(error)])
    version = made.version()
    for package in ("qsweep", "gptqmodel", "llama-cpp-python"):
        if version.startswith(f"{_installed(package)}+") or version == _installed(package):
            version = package + version.removeprefix(_installed(package))
    found = [made.method, made.backend, made.uses_calibration, made.options(), version]
    return json.dumps([name, options, *found])


def _installed(package: str) -> str:
    if package == "qsweep":
        return __version__
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return "not installed"


def test_identities_are_as_they_were(tmp_path):
    (tmp_path / "worker.py").write_text(WORKER)
    kept = FILE.read_text().splitlines()
    assert len(kept) > 150
    for found, line in zip(identities(tmp_path / "worker.py"), kept, strict=True):
        # The name of a library that is not installed says nothing of its version.
        assert found == line or "missing" in found


def test_every_method_tells_formats_apart():
    """Of equal bits and group sizes, too: they are different artifacts."""
    alike = (numbers.NVFP4(), numbers.NVFP4A16(), numbers.Int(), numbers.W4A16(), numbers.W4A8())
    for name in ("rtn.RTN", "native.NativeGPTQ", "native.NativeAWQ", "isolated.LLMCompressorGPTQ"):
        module, _, kind = name.partition(".")
        cls = getattr(importlib.import_module(f"qsweep.quantizers.{module}"), kind)
        found = [cls(sym=True, format=number).options() for number in alike]
        assert [one.get("format") for one in found] == ["nvfp4", "nvfp4a16", None, "w4a16", "w4a8"]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "worker.py"
        script.write_text(WORKER)
        FILE.write_text("\n".join(identities(script)) + "\n")
