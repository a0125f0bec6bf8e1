"""Hydra's and OmegaConf's errors as one line that names the option and the nearest right word."""

import re
import shlex
from typing import Any

from qsweep.base.config_files import config_folder, group_choices, options_by_choice
from qsweep.base.errors import QsweepError
from qsweep.base.schema import nearest
from qsweep.base.secrets import hidden
from qsweep.sweep.option_names import known_options, options_of_files

_LONGEST = 400
# What corpus=file has at the top, and any other text under its own name.
_OF_ANY_TEXT = ("field", "assistant_only")


def explain(error: Exception) -> str:
    """One line for whatever goes wrong while a configuration is composed, without a password."""
    return hidden(_explain(error))


def _explain(error: Exception) -> str:
    from hydra.errors import MissingConfigException, OverrideParseException
    from yaml import YAMLError

    if isinstance(error, QsweepError):
        return str(error)
    text = str(error).strip()
    if isinstance(error, OverrideParseException):
        return _no_override(error.override)
    if isinstance(error, MissingConfigException):
        return _missing(error, text)
    if isinstance(error, YAMLError):
        return f"not YAML: {_line(text)}"
    if isinstance(error, RecursionError) or "maximum recursion depth" in text:
        return "a configuration file or a value contains itself"
    if isinstance(error, UnicodeError):
        return f"a configuration file is not text in UTF-8 ({_line(text)})"
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else _line(text)
    for pattern, words in _WORDS:
        if found := re.search(pattern, text):
            return words(*found.groups()) if callable(words) else words.format(*found.groups())
    return _line(text) or type(error).__name__


def refused_option(error: Exception) -> str | None:
    """The option that Hydra does not let one set, since no file names it; None for other errors."""
    found = re.search(r"Could not override '([^']+)'\.\nTo append", str(error))
    return found.group(1) if found else None


def _no_override(override: str) -> str:
    name, separator, value = override.partition("=")
    if not separator or not name.lstrip("+~"):
        return f"{override!r} is not an override; write NAME=VALUE"
    if value[:1] in ("'", '"') and value.count(value[0]) % 2:
        return f"{override}: the quote is not closed; for example {_typed(name, value[1:])}"
    if value.startswith(("[", "{")):
        return (
            f"{override}: not a list or mapping as Hydra reads them; close what is open, and write "
            f"what has other characters than letters in quotes; as a text it is {_typed(name, value)}"
        )
    return f"{override}: Hydra's grammar wants quotes here; write {_typed(name, value)}"


def _typed(name: str, value: str) -> str:
    """An override with its value in quotes, as one types it in a shell."""
    from qsweep.sweep.overrides import quote

    text = f"{name}={quote(value)}"
    # Easier to read than what shlex makes of quotes in quotes.
    return shlex.quote(text) if re.search(r'["$`\\!]', text) else f'"{text}"'


def _missing(error: Any, text: str) -> str:
    missing = str(error.missing_cfg_file or "")
    if found := re.search(r"config directory '(.+)' exists", text):
        return f"--config-path={found.group(1)}: no such folder; --config-dir=DIR adds one"
    if found := re.search(r"Cannot find primary config '([^']+)'", text):
        names = [
            p.stem for place in ("sweeps", "conf") for p in config_folder(place).glob("*.yaml")
        ]
        if found.group(1) in names:
            return f"--config-path: holds no {found.group(1)}.yaml; --config-dir=DIR adds a folder"
        return f"--config-name={found.group(1)}: no such file{nearest(found.group(1), names)}"
    # hydra/launcher is a group; elsewhere what has a slash is the choice.
    depth = 2 if missing.startswith("hydra/") else 1
    *parts, choice = missing.split("/", depth)
    group = "/".join(parts)
    if not group:
        return f"{missing}: named in a defaults list, and no such file"
    # Hydra does not say what there is where a choice names another.
    there = error.options or group_choices().get(group, ())
    return f"{group}={choice}: no such choice{nearest(choice, there)}"


def _no_group(name: str) -> str:
    if name == "search":
        return (
            "search: a grid is not searched; qsweep search --config-name=pareto search=per_gb "
            "searches a sweep file's space, qsweep search quant=gptq,awq search=per_gb what is typed"
        )
    if name in (known := known_options(name)):
        return (
            f"{name}: this configuration file chooses none that could be replaced; let it "
            "begin with defaults: [config, _self_]"
        )
    return f"no option {name!r}{nearest(name, known)}"


def _no_option(key: str) -> str:
    group, _, name = key.rpartition(".")
    if key.partition(".")[0] == "hydra":
        return f"Hydra has no option {key!r}; --cfg hydra shows what there is"
    if owners := [choice for choice, options in options_by_choice(group) if name in options]:
        if group == "corpus" and name in _OF_ANY_TEXT:
            return (
                f"{key}: only corpus=file has this option by this name; of another text it is "
                f"corpus.NAME.{name}, as corpus.chat.{name}"
            )
        chosen = " or ".join(f"{group}={choice}" for choice in owners)
        return (
            f"{key}: only {chosen} has this option; a sweep that has others, too, gives it under "
            "'when' in a file (sweeps/pareto.yaml)"
        )
    if key in (known := known_options(key)):
        return (
            f"no option {key!r} in this configuration file: let it begin with "
            "defaults: [config, _self_]"
        )
    files = options_of_files()
    if key in files:
        return f"{key}: belongs to --config-name={files[key]}"
    return f"no option {key!r}{nearest(key, [n for n in files if group and _group(n) == group] or known)}"


def _group(name: str) -> str:
    return name.rpartition(".")[0]


def _no_sweeper_option(name: str) -> str:
    known = ("params", "when", "trials")
    return f"no option 'hydra.sweeper.{name}'{nearest(name, known)}"


def _kept(name: str) -> str:
    if name not in (known := known_options(name)) and name != "hydra":
        return f"~{name}: there is no option {name!r}{nearest(name, known)}"
    return f"~{name}: cannot be left out; give it a value, {name}=…"


def _several(override: str) -> str:
    name, _, value = override.partition("=")
    return (
        f"{override}: several values are a sweep, with -m; one text with commas is "
        f"{_typed(name, value)}, a list is {name}=[{value}]"
    )


_WORDS: tuple[tuple[str, Any], ...] = (
    (r"Could not override '([^']+)'\. No match in the defaults list", _no_group),
    (r"Could not override '([^']+)'", _no_option),
    (r"Key '(\w+)' not in 'Qsweep\w+Config'", _no_sweeper_option),
    (r"Could not delete '([^']+)'", _kept),
    (r"Could not delete from config\. '([^']+)' does not exist", _kept),
    (r"Could not delete from config\. The value of '([^']+)' is", _kept),
    (r"Ambiguous value for argument '(.*?)'\n", _several),
    (r"Override (\S+) looks like a config group", "{0}: there is no such group"),
    (r"Missing mandatory value: (\S+)", "{0} has no value; give {0}=…"),
    (
        r"Interpolation key '([^']+)' not found\s+full_key: (\S+)",
        "{1}: is taken from ${{{0}}}, and there is no option {0}",
    ),
    (r"Interpolation key '([^']+)' not found", "${{{0}}}: there is no option {0}"),
    (r"Environment variable '([^']+)' not found", "${{oc.env:{0}}}: {0} is not set"),
    (r"Error merging override (hydra\.mode=\S*)", "{0}: the mode is RUN or MULTIRUN"),
    (r"Recursive interpolation detected", "an option is taken from itself, by ${{…}}"),
    (r"Unsupported interpolation type (\S+)", "${{{0}:…}}: no such resolver"),
    (r"Sweep parameters '(.*?)'", "{0}: several values are a sweep, with -m"),
    (
        r"Config group override must be a string or a list\. Got (\w+)",
        "the choice of a group is a name, not {0}",
    ),
)


def _line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"
