"""The store of an outputs folder with the copy that machines share, for commands that are given one."""

import argparse
from dataclasses import replace
from pathlib import Path

from qsweep.base.remote_settings import RemoteSettings
from qsweep.base.store import Store


def add_remote(parser: argparse.ArgumentParser, help: str) -> None:
    """Add the option ``--remote``."""
    parser.add_argument("--remote", metavar="URL", help=help)


def shared_store(outputs: Path, url: str | None, *, push: bool | None = False) -> Store:
    """A store, with a remote copy: that of the URL, else that of the last sweep which had one.

    Args:
        outputs: The outputs folder.
        url: What was given as ``--remote``.
        push: Whether anything is sent; a command that reads sends nothing. None: as the last sweep.

    Raises:
        ConfigError: The URL is of no kind that can be shared.
    """
    settings = Store.below(outputs).settings if url is None else RemoteSettings(url)
    return Store.below(outputs, settings if push is None else replace(settings, push=push))
