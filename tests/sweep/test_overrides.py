"""Overrides as people type them, against the Hydra that is installed: its grammar and its words."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from helpers.sweeps import run_here
from qsweep.base.errors import ConfigError
from qsweep.base.names import file_word, folder_name
from qsweep.quantizers.native import NativeGPTQ
from qsweep.quantizers.rtn import RTN
from qsweep.search.space import overrides_of
from qsweep.search.sweep_file import read_rows, read_space
from qsweep.sweep.explain import explain, refused_option
from qsweep.sweep.naming import default_name
from qsweep.sweep.overrides import acceptable, is_option, quote

ROOT = Path(__file__).resolve().parents[2]
# Folders that people have; Hydra's grammar takes none of them unquoted.
PATHS = [
    *(
        "/data/a=b",
        "/data/model (1)",
        "/data/#3/x",
        "~/models/x",
        "/data/[old]/x",
        "/données/modèle",
    ),
    *(
        "/数据/模型",
        "/data/it's",
        '/data/"x"',
        "/data/a&b;c",
        "/data/x!",
        "/data/{a}",
        "/d/a`b",
        "/d/<x>",
    ),
]


def parsed(override):
    return OverridesParser.create().parse_override(override).value()


def is_refused(override):
    try:
        OverridesParser.create().parse_override(override)
    except HydraException:
        return True
    return False


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("option", ["model.path", "corpus.path", "outputs_dir", "+corpus.x.path"])
def test_paths_are_quoted_where_hydra_wants_it(option, path):
    assert is_refused(f"{option}={path}")
    assert parsed(acceptable(f"{option}={path}")) == path


@pytest.mark.parametrize(
    "text", [*PATHS, "'", "\\", "\\'", "a\\\\'b\\", "", " x ", "a\nb", ",", "$x"]
)
def test_quotes_keep_every_text(text):
    assert parsed(f"x={quote(text)}") == text


@pytest.mark.parametrize(
    "override",
    ["bits=3,4", "model.path=/a b/c", "eval.tasks=[mmlu,gsm8k]", "sweep=null", "quant=gptq,awq",
     "quant.env={create: true}", "bits=4", "model.path='/a(1)'", "~quant", "sweep=a,b", "x=${bits}"],
)  # fmt: skip
def test_what_hydra_takes_stays_as_it_is(override):
    assert acceptable(override, {"quant": ["gptq"]}) == override


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("sweep=2024", "2024"),
        ("sweep=1e3", "1e3"),
        ("sweep=true", "true"),
        ("model.revision=12e4567", "12e4567"),
        ("model.name=007", "007"),
        ("corpus.c4.revision=1_0", "1_0"),
        ("tracking.experiment=5", "5"),
        ("quant.env.python=3.11", "3.11"),
        ("search.study=7", "7"),
    ],
)
def test_a_number_is_a_text_where_a_text_is_wanted(override, value):
    assert parsed(acceptable(override)) == value


def test_several_values_are_quoted_one_by_one():
    sweep = acceptable("model.path=/a(1),/b,/c=d")
    values = OverridesParser.create().parse_override(sweep).sweep_string_iterator()
    assert [parsed(f"x={value}") for value in values] == ["/a(1)", "/b", "/c=d"]
    assert parsed(acceptable("eval.tasks=[/a(1).yaml,mmlu]")) == ["/a(1).yaml", "mmlu"]


def test_sweep_files_have_the_same_texts():
    space = read_space({"model.path": "/a(1),/b=c", "quant": "rtn"}, None, ["sweep=2024"])
    texts = [overrides_of(params) for params in space.combinations()]
    assert ["model.path='/a(1)'", "quant=rtn", "sweep='2024'"] in texts and len(texts) == 2
    ((row,),) = read_rows(['"model.path=/a (1)"'], read_space({}, None, []))
    assert parsed(row) == "/a (1)"
    with pytest.raises(ConfigError, match="no closing quotation"):
        read_rows(["quant='gptq"], read_space({}, None, []))


def test_the_command_line_replaces_an_option_that_no_file_names():
    space = read_space({"quant.scale_search": "mse,loss"}, None, ["++quant.scale_search=range"])
    assert [overrides_of(p) for p in space.combinations()] == [["quant.scale_search=range"]]


def test_options_that_only_the_dataclass_has():
    for name in ("model.device_map", "model.trust_remote_code", "corpus.c4.max_documents"):
        assert is_option(name)
    assert is_option("quant.scale_search", [NativeGPTQ])
    assert not is_option("quant.scale_search", [NativeGPTQ, RTN])
    for name in ("model.devise_map", "model", "corpus.c4", "corpus.c4.x", "quant.bits", "bits", ""):
        assert not is_option(name)


@pytest.mark.parametrize("choice", ["null", "{}", "{a: 1}", "NULL"])
def test_a_group_wants_a_name(choice):
    with pytest.raises(ConfigError, match="a choice is a name; there are gptq, rtn"):
        acceptable(f"quant={choice}", {"quant": ["gptq", "rtn"]})


# names


@pytest.mark.parametrize(
    "name", ["t", "größe", "模型-1", "a b", "a.b", "2024", "x" * 200, "a=b", "(1)"]
)
def test_names_of_folders(name):
    assert folder_name(name, "sweep") == name


@pytest.mark.parametrize("value", [2024, 1.5, True, float("nan")])
def test_a_number_is_a_name(value):
    assert folder_name(value, "sweep") == str(value).removesuffix("True") or "true"


@pytest.mark.parametrize(
    "name",
    ["", " ", ".", "..", "../x", "/abs", "a/b", "a/../../b", "\\x", "a\0b", "a\nb", "a\tb", " a", "a ",
     ".hidden", "-m", "a.", "x" * 201, "ü" * 101, "a:b", "a?", "a*", "<a>", "a|b", '"a"', "\udcff",
     "\u2028", [], {}, None, b"x"],
)  # fmt: skip
def test_what_is_no_name_of_a_folder(name):
    with pytest.raises(ConfigError, match="^sweep=") as caught:
        folder_name(name, "sweep")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("label", ["../../evil", "/abs", "a/b.txt", "..", "", "x" * 300, "a\0b"])
def test_a_label_within_a_files_name_stays_in_its_folder(label):
    word = file_word(label)
    assert Path(word).name == word and word not in ("", "..") and len(word) <= 80
    assert file_word("python_docs") == "python_docs"


@pytest.mark.parametrize(
    "overrides", [["model.path='/x/../..'"], ["bits=" + "ü" * 79], ["a='\n'"], ["model.path='..'"]]
)
def test_a_sweeps_default_name_is_one_folders(overrides):
    for config_name in ("config", "../x", "a/b", "模" * 90):
        assert folder_name(default_name(overrides, config_name), "sweep")


# Hydra's words, from Hydra itself


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model=lama"], "model=lama: no such choice; there are deepseek-v2-lite, "),
        (["hydra/launcher=nope"], "hydra/launcher=nope: no such choice; there are basic, qsweep"),
        (["search=per_gb"], "--config-name=pareto search=per_gb"),
        (["bits='3"], "bits='3: the quote is not closed; for example \"bits='3'\""),
        (["eval.presets=[gptq"], "close what is open"),
        (["model.path=/a,b"], "one text with commas is \"model.path='/a,b'\""),
        (["~n_jobs", "device=cuba"], "device=cuba"),
        (["~sweep"], "~sweep: cannot be left out"),
        (["~quant"], "quant: nothing is chosen"),
        (["model=null"], "model=null: a choice is a name; there are "),
        (["+search=5"], "search=5: no such choice"),
        (["bits=${bits}"], "is taken from itself"),
        (["seed=${nope}"], "there is no option nope"),
        (["seed=${oc.env:QSWEEP_NO_SUCH}"], "QSWEEP_NO_SUCH is not set"),
        (["model@x=pocket"], "model@x"),
        (["model.devise_map=auto"], "did you mean 'model.device_map'"),
        (["corpus.c4.max_documents=5"], "corpus.c4: has no source; choose it with corpus=[c4]"),
        (["--config-name="], "--config-name: needs a name"),
        (["--resolve"], "--resolve"),
        (["sweep=../../evil"], "sweep='../../evil': begins with a dot"),
        (["sweep="], "sweep='': the name is empty"),
        (["outputs_dir=null"], "outputs_dir=None: a folder"),
        (["-m", "quant=gptq", "bits=3,4", "-c", "job"], "Only one of"),
    ],
)  # fmt: skip
def test_an_error_of_hydra_is_a_line_of_ours(tmp_path, arguments, message):
    given = [] if "outputs_dir=null" in arguments else [f"outputs_dir={tmp_path / 'out'}"]
    result = run_here([*arguments, *given])
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ") and message in line
    assert "provider=" not in line and "hydra.cc" not in line and "Exception" not in line
    assert not (tmp_path / "out" / "sweeps").exists() and not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    ("arguments", "values"),
    [
        (["model.path=/données/#1 (a=b)"], {"model.path": "/données/#1 (a=b)"}),
        (["model.device_map=auto", "-c", "job"], {"model.device_map": "auto"}),
        (["model=qwen3-0.6b", "model.path=/x"], {"model.path": "/x", "model.name": "qwen3-0.6b"}),
        (["quant.scale_search=mse"], {"quant.scale_search": "mse"}),
        (["corpus.python_docs.max_documents=3"], {"corpus.python_docs.max_documents": 3}),
        (["sweep=2024", "eval.limit=2"], {"sweep": "2024", "eval.limit": 2}),
    ],
)
def test_what_people_type_reaches_the_configuration(arguments, values):
    import yaml

    words = [a for a in arguments if a not in ("-c", "job")]
    result = run_here(["--cfg", "job", "--resolve", *words])
    assert result.returncode == 0, result.stderr
    found = yaml.safe_load(result.stdout)
    for name, value in values.items():
        inner = found
        for word in name.split("."):
            inner = inner[word]
        assert inner == value


def test_a_refused_option_is_told_by_hydras_own_words():
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        with pytest.raises(HydraException) as caught:
            compose("config", ["model.device_map=auto"])
        assert refused_option(caught.value) == "model.device_map"
        with pytest.raises(HydraException) as caught:
            compose("config", ["model.path=/x(1)"])
        advice = explain(caught.value).rpartition("write ")[2]
    # What the line says can be pasted into a shell, and works.
    assert parsed(*shlex.split(advice)) == "/x(1)"


def test_options_may_stand_anywhere_and_the_version_is_ours():
    result = run_here(["device=cuba", "-m", "bits=3,4", "--config-name", "smoke", "quant=rtn"])
    assert "device=cuba" in result.stderr and result.returncode == 2
    result = run_here(["--version"])
    assert (result.returncode, result.stdout.split()[0]) == (0, "qsweep")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [\n", "not YAML: "),
        ("- 1\n", "must be a DictConfig"),
        ("", "let it begin with defaults: [config, _self_]"),
        ("a: &a [*a]\n", "contains itself"),
        ("defaults: [config, mine, _self_]\n", "contains itself"),
        ("defaults: 5\n", "defaults must be a list"),
        ("defaults: [config, _self_]\nsweep: ../x\n", "sweep='../x': begins with a dot"),
        ("defaults: [config, _self_]\nquant: null\n", "quant: nothing is chosen"),
        (b"\xff\xfe", "not text in UTF-8"),
        (None, "is a pipe or a device"),
    ],
)
def test_a_sweep_file_of_every_kind_is_a_line(tmp_path, content, message):
    import os

    file = tmp_path / "mine.yaml"
    if content is None:
        os.mkfifo(file)
    else:
        file.write_bytes(content.encode() if isinstance(content, str) else content)
    where = ["--config-dir", str(tmp_path), "--config-name=mine"]
    result = run_here([*where, f"outputs_dir={tmp_path}/o"])
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.strip().splitlines()
    assert message in line


# the terminal


def test_a_reader_who_is_gone_ends_nothing(tmp_path):
    script = f"{sys.executable} -m qsweep.sweeps | true; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert (result.returncode, result.stderr) == (0, "")
    for closed in (">&-", "2>&-", ">&- 2>&- <&-"):
        script = f"{sys.executable} -m qsweep device=cuba outputs_dir={tmp_path} {closed}"
        result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=ROOT)
        assert result.returncode == 2 and "Traceback" not in result.stderr


def test_a_working_directory_that_is_gone(tmp_path):
    script = f"cd {tmp_path} && mkdir x && cd x && rmdir ../x && {sys.executable} -m qsweep"
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr == "error: the working directory is gone; cd to one that is there\n"
