"""What a refusal advises leads somewhere; what any message names exists."""

import ast
import re
import tomllib
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import yaml

import qsweep
from qsweep.base.errors import BackendUnavailable, ConfigError, IncompatibleTrial
from qsweep.commands.main import COMMANDS
from qsweep.models.source import ModelFacts
from qsweep.quantizers.artifact import ExistingArtifact
from qsweep.quantizers.gguf import GGUF
from qsweep.quantizers.gptqmodel import AWQ, GPTQ
from qsweep.quantizers.isolated import AutoAWQ, AutoGPTQ, AutoRound
from qsweep.quantizers.native import NativeAWQ, NativeGPTQ
from qsweep.quantizers.rtn import RTN
from qsweep.sweep.config import trial_config
from qsweep.sweep.option_names import known_options, options_of_files
from qsweep.sweep.overrides import is_option


def facts_of(linears, model_type="llama", experts=False):
    return ModelFacts("mini", Path(), model_type, linears, 1000, 512, 100, experts)


ODD = {"layers.0.a": (512, 512), "layers.0.b": (512, 512), "layers.0.c": (4, 512)}
PLAIN = {"layers.0.a": (512, 512), "layers.0.b": (512, 192)}
REFUSED = [
    (quantizer, facts_of(linears, model_type))
    for linears in (ODD, PLAIN)
    for model_type in ("llama", "of_tomorrow", "gpt2")
    for quantizer in (
        RTN(group_size=128), RTN(bits=5), RTN(group_size=96),
        NativeGPTQ(group_size=16), NativeGPTQ(group_size=256), NativeAWQ(group_size=128),
        NativeAWQ(bits=6), GPTQ(group_size=48), AWQ(group_size=256),
        AutoAWQ(bits=3, group_size=64), AutoAWQ(group_size=64, sym=True), AutoAWQ(group_size=64),
        AutoAWQ(group_size=128), AutoGPTQ(group_size=64), AutoGPTQ(group_size=64, sym=False),
        AutoRound(bits=3, export="awq"), AutoRound(sym=False), AutoRound(group_size=64),
    )
]  # fmt: skip


def advised(quantizer, message):
    """The other choices that a refusal names, with the refused trial's remaining options."""
    values = {n: getattr(quantizer, n) for n in ("bits", "group_size") if hasattr(quantizer, n)}
    awq = quantizer.method == "awq"
    for sizes in re.findall(r"for this model: ([-\d, ]+)", message):
        for size in sizes.split(", "):
            yield replace(quantizer, group_size=int(size))
    if "a multiple of it" in message:
        yield replace(quantizer, group_size=32)
    if re.search(r"quant=rtn|gptq and rtn", message):
        yield RTN(**values)
    if "gptq and rtn" in message:
        yield NativeGPTQ(**values)
    bits = [2, 3, 8] if "2, 3 and 8" in message else [quantizer.bits]
    for width in bits:
        if re.search(r"native (or|and)|and native", message):
            yield (NativeAWQ if awq else NativeGPTQ)(**values | {"bits": width})
        if "gptqmodel" in message and "pip install" not in message:
            yield (AWQ if awq else GPTQ)(**values | {"bits": width})
    if "sym=false" in message or "sym=true" in message:
        yield replace(quantizer, sym="sym=true" in message)
    if "4 bits only" in message:
        yield replace(quantizer, bits=4)


def refusal(quantizer, facts):
    try:
        quantizer.check(facts)
    except BackendUnavailable:
        return None
    except IncompatibleTrial as error:
        return str(error)
    return None


def leads_on(quantizer, facts, message, depth=3):
    """Fails unless every choice that a refusal names is taken, or refused with one that is.

    Where two options are wrong they are told one by one; what stands in the way of one backend
    alone, and needs no way out within it, ends the search.
    """
    for other in advised(quantizer, message):
        found = refusal(other, facts)
        if found is None:
            continue
        assert type(other) is type(quantizer), f"{message} -> {found}"
        if "on CUDA only" in found or "does not know" in found:
            continue
        assert depth and list(advised(other, found)), f"{message} -> {found}"
        leads_on(other, facts, found, depth - 1)


@pytest.mark.parametrize(("quantizer", "facts"), REFUSED)
def test_what_a_refusal_advises_is_not_refused(quantizer, facts, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    facts = replace(facts, path=tmp_path)
    if (message := refusal(quantizer, facts)) is not None:
        leads_on(quantizer, facts, message)


# What any message of the program names: packages, commands, flags, options.

SOURCE = Path(qsweep.__file__).parent
PROJECT = SOURCE.parents[1]


@cache
def texts():
    """Every string of the program that is no documentation, with its place; ``{}`` for what varies."""
    found = []
    for file in sorted(SOURCE.rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        inner = {
            id(part)
            for node in ast.walk(tree)
            for part in (
                node.values
                if isinstance(node, ast.JoinedStr)
                else [node.value]
                if isinstance(node, ast.Expr)
                else ()
            )
        }
        for node in ast.walk(tree):
            if id(node) in inner:
                continue
            if isinstance(node, ast.JoinedStr):
                parts = [getattr(part, "value", None) for part in node.values]
                text = "".join(part if isinstance(part, str) else "{}" for part in parts)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value
            else:
                continue
            found.append((f"{file.relative_to(SOURCE)}:{node.lineno}", text))
    return found


def named(pattern):
    """What matches in any text, by its first place."""
    found = {}
    for place, text in texts():
        for match in re.finditer(pattern, text):
            found.setdefault(match.groups(), place)
    return found


def test_every_extra_that_is_named_exists():
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    extras = {extra for (extra,) in named(r"\bqsweep\[([\w-]+)\]")}
    assert len(extras) >= 4 and extras <= project["optional-dependencies"].keys()


# What follows qsweep's name in sentences.
NO_COMMANDS = {"again", "does", "has", "is", "measures", "reads", "reference", "serves", "starts"}


def test_every_command_that_is_named_is_one():
    told = {word for (word,) in named(r"\bqsweep ([a-z]+)\b(?![=:'])")}
    assert {"env", "sync", "prune"} <= told and told - NO_COMMANDS <= COMMANDS.keys()
    assert named(r"(python -m qsweep)") == {}  # one way to call it


def test_every_flag_that_an_error_names_is_some_commands():
    from qsweep.commands.sweep import parser

    own = {flag for action in parser()._actions for flag in action.option_strings}
    told = {}
    for file in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            strings = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant)]
            text = " ".join(value for value in strings if isinstance(value, str))
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("add_argument"):
                own |= set(re.findall(r"^--[a-z-]+", text))
            if isinstance(node, ast.Raise | ast.Return):
                flags = re.findall(r"(?<![\w-])--[a-z][a-z-]+(?= [A-Z{]|=[A-Z{]| frees| $|;)", text)
                told |= dict.fromkeys(flags, f"{file.name}:{node.lineno}")
    own.add("--backend-store-uri")  # MLflow's, where it is advised
    assert {f: p for f, p in told.items() if f not in own} == {}
    assert {"--outputs", "--config-dir", "--python", "--sdist"} <= told.keys()


# Assignments in other languages: a model card's Python, SQL, mounts, an environment's YAML.
NO_OPTIONS = {
    *("device_map", "max_new_tokens", "return_tensors"),
    *("journal_mode", "synchronous", "mode"),
    *("root", "size", "nr_inodes"),
    *("python", "bos", "x", "s", "b", "hydra.mode", "source", "install", "query", "file"),
}
ASSIGNED = named(r"(?<![\w./%\"'-])\+?([a-z_]+(?:[./][a-z_]+)*)=([\w./{}-]*)")
QUANTIZERS = ("gptq", "awq", "rtn", "gguf", "autoround", "gptaq", "artifact")


def composes(tmp_path, *overrides):
    """Whether a trial can be composed so, with some quantizer."""
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from qsweep.sweep.compose import register_resolvers

    register_resolvers()
    problems = []
    for quantizer in QUANTIZERS:
        chosen = [] if any(o.startswith("quant=") for o in overrides) else [f"quant={quantizer}"]
        try:
            with initialize_config_dir(str(PROJECT / "conf"), version_base="1.2"):
                config = compose("config", [*chosen, f"outputs_dir={tmp_path}", *overrides])
            trial_config(OmegaConf.to_container(config, resolve=True, throw_on_missing=True))
            return None
        except (HydraException, OmegaConfBaseException, ConfigError) as error:
            problems.append(f"{chosen}: {error}")
    return problems


def option(name, value):
    """An override as Hydra takes it: what no file names is added."""
    file = yaml.safe_load((PROJECT / "conf" / "config.yaml").read_text())
    if name in file or name == "calibration" or name.startswith("hydra/"):
        return f"{name}={value}"
    return f"++{name}={value}" if "." in name else f"+{name}={value}"


@pytest.mark.parametrize(("name", "value"), sorted(ASSIGNED))
def test_every_option_that_is_named_is_one(name, value, tmp_path):
    if name in NO_OPTIONS or name in options_of_files():
        return
    group, _, rest = name.partition(".")
    file = yaml.safe_load((PROJECT / "conf" / "config.yaml").read_text())
    groups = {path.name for path in (PROJECT / "conf").iterdir() if path.is_dir()}
    if "/" in name:
        assert group.startswith("hydra/")
    elif not rest:
        assert name in file or name in groups
    elif group == "quant":
        classes = (
            *(RTN, NativeGPTQ, NativeAWQ, GPTQ, AWQ, AutoAWQ, AutoGPTQ, AutoRound, GGUF),
            ExistingArtifact,
        )
        assert rest in (
            "env.python",
            "env.create",
            "env.timeout_s",
            "backend",
            "backends",
            "worker",
            "writes",
        ) or any(hasattr(cls, rest) or rest in cls.__dataclass_fields__ for cls in classes)
    else:
        assert name in known_options(name) or is_option(name), ASSIGNED[name, value]


@pytest.mark.parametrize(
    ("name", "value"),
    sorted(
        (n, v) for n, v in ASSIGNED
        if n not in {*NO_OPTIONS, *options_of_files()} and re.fullmatch(r"[a-z0-9_-]+", v) and n != "search"
    ),
)  # fmt: skip
def test_every_value_that_is_advised_is_taken(name, value, tmp_path):
    more = {
        "file": [option("corpus.path", tmp_path / "text.txt")],
        "artifact": [option("quant.path", tmp_path / "a.gguf")],
    }.get(value, [])
    more += ["format=nf4"] if name == "format.double_quant" else []
    assert (
        composes(tmp_path, f"{name}={value}" if "." not in name else option(name, value), *more)
        is None
    )


@pytest.mark.parametrize(
    ("module", "advice"),
    [
        ("langdetect", 'pip install "qsweep[tasks]"'),
        ("math_verify", 'pip install "lm_eval[math]"'),
        ("sklearn.metrics", "pip install scikit-learn"),
        # the harness's own, or nobody knows whose
        ("metrics", "README"),
        ("tinyBenchmarks", "README"),
    ],
)
def test_what_to_install_for_a_task_of_the_harness(module, advice):
    pytest.importorskip("lm_eval")
    from qsweep.tasks.harness import install_advice

    assert advice in install_advice(module)
