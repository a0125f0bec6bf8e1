"""What a sweep is called that was given no name."""

import re
from collections.abc import Sequence

from qsweep.base.keys import key_of
from qsweep.base.secrets import hidden_value

# Options that change no number do not belong in a sweep's name.
_NOT_IN_NAME = (
    *(
        "hydra",
        "outputs_dir",
        "sweep",
        "launch",
        "tracking",
        "store",
        "n_jobs",
        "timeout_s",
        "device",
        "silent_kld",
    ),
    "model.stream",
    *("search.trials", "search.batch", "search.storage", "search.study"),
)


def default_name(overrides: Sequence[str], config_name: str) -> str:
    """A readable name made from what a sweep varies: ``quant-gptq-awq_bits-3-4-8``.

    The same command has the same name, so that it continues the same sweep.
    """
    words = [hidden_value(o) for o in overrides if not o.lstrip("+~").startswith(_NOT_IN_NAME)]
    parts = [config_name] if config_name != "config" else []
    parts += sorted(words, key=lambda word: word.removeprefix("++"))
    parts = [re.sub(r"[^\w.]+", "-", part.lstrip("+~")).strip("-.") for part in parts]
    name = "_".join(filter(None, parts)) or "default"
    # Of folders' names, the bytes are limited: a letter may have four.
    if len(name) > 80 or len(name.encode()) > 200:
        start = name.encode()[:180].decode(errors="ignore")[:71]
        name = f"{start}-{key_of(words)[:8]}"
    return name
