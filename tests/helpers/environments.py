"""Environments that quantizers of their own need, where tests find them."""

import os
from pathlib import Path

import pytest

from qsweep.base.errors import BackendUnavailable
from qsweep.quantizers.environments.choice import EnvChoice


def require_environment(name: str) -> EnvChoice:
    """The environment in QSWEEP_ENVS (or outputs/envs), or the test is skipped with the reason."""
    choice = EnvChoice(folder=Path(os.environ.get("QSWEEP_ENVS", "outputs/envs")), device="cpu")
    try:
        choice.require(name)
    except BackendUnavailable as error:
        pytest.skip(str(error))
    return choice
