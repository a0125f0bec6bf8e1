"""Options of a configuration as it was written down, resolved again."""

from typing import Any

from qsweep.base.secrets import is_hidden


def resolved_again(written: Any, option: str) -> Any:
    """An option (``model.path``) of a configuration as it was written down, resolved here and now.

    None where there is none, where the environment no longer has what it names, and where a
    password was left out.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        value = OmegaConf.select(OmegaConf.create(written), option)
    except (OmegaConfBaseException, ValueError):
        return None
    return None if is_hidden(str(value)) else value
