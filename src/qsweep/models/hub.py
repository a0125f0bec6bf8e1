"""From a model's name to its directory, and to the hash of its content."""

import importlib.util
import os
from importlib.metadata import version
from pathlib import Path

from qsweep.base.errors import ConfigError, QsweepError
from qsweep.base.store import Store, file_hash
from qsweep.models.files import CONTENT, content_files, weight_files
from qsweep.sweep.config import ModelConfig, key_of

_DOWNLOAD = [
    *("*.safetensors", "*.safetensors.index.json", *CONTENT),
    *("generation_config.json", "chat_template*", "LICENSE*"),
]


def resolve(model: ModelConfig, store: Store) -> tuple[Path, str | None]:
    """The directory of a model, fetched if need be, and a notice for the user if there is one.

    Raises:
        ConfigError: ``model.path`` is not a directory.
        QsweepError: the hub cannot be reached or refuses, and there is no fallback.
    """
    if model.path is not None:
        path = Path(model.path).expanduser().absolute()
        if not path.is_dir():
            what = "is a file, not a directory" if path.exists() else "no such directory"
            raise ConfigError(f"model.path={model.path}: {what}")
        return path, None
    try:
        return _from_hub(model), None
    except QsweepError as error:
        if model.fallback is None:
            raise
        path = _fallback(model, store, error)
        return path, (
            f"{model.name}: no hub within reach, so the copy in the package {model.fallback} is "
            "used; its weights sit on a 4-bit grid, which flatters 4-bit results"
        )


def content_hash(path: Path, store: Store) -> str:
    """A hash of all that determines a model's numbers: weights, configuration and tokenizer.

    Of several sets of weights in the directory only those of the checkpoint count.

    Raises:
        ConfigError: one of the files cannot be read.
    """
    files = {str(file.relative_to(path)): file for file in content_files(path)}
    return key_of({name: file_hash(store, file) for name, file in sorted(files.items())})


def _from_hub(model: ModelConfig) -> Path:
    # A snapshot that is complete in the cache needs no network at all.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    def snapshot(local_files_only: bool) -> Path:
        return Path(
            snapshot_download(
                str(model.repo),
                revision=model.revision,
                allow_patterns=_DOWNLOAD,
                local_files_only=local_files_only,
            )
        )

    name = f"model={model.name}"
    held = "not"
    try:
        cached = snapshot(local_files_only=True)
        if _is_whole(cached):
            return cached
        held = "only partly"
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, FileNotFoundError):
        pass
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
        raise QsweepError(
            f"{name}: {model.repo} is {held} in the hub cache and HF_HUB_OFFLINE is set; "
            "unset it, or give a local copy with model.path=DIR"
        )
    try:
        # Where the hub does not answer, this too gives what is in the cache.
        fetched = snapshot(local_files_only=False)
        if _is_whole(fetched):
            return fetched
        raise QsweepError(
            f"{name}: {model.repo} is not whole in the hub cache ({fetched}); either the hub cannot "
            "be reached, or it has no safetensors of it, and pickled weights are never loaded"
        )
    except GatedRepoError as error:
        raise QsweepError(
            f"{name}: {model.repo} is gated; accept its licence on the hub and log in (hf auth login)"
        ) from error
    except RevisionNotFoundError as error:
        raise QsweepError(f"{name}: {model.repo} has no revision {model.revision!r}") from error
    except RepositoryNotFoundError as error:
        raise QsweepError(
            f"{name}: the hub has no model {model.repo} (or it is private)"
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise QsweepError(
            f"{name}: the model hub cannot be reached for {model.repo}; "
            "check the network, or give a local copy with model.path=DIR"
        ) from error


def _is_whole(snapshot: Path) -> bool:
    # A download that was interrupted leaves those of the shards that had arrived.
    try:
        weight_files(snapshot)
    except ConfigError:
        return False
    return (snapshot / "config.json").exists()


def _fallback(model: ModelConfig, store: Store, error: QsweepError) -> Path:
    module = str(model.fallback).replace("-", "_")
    if importlib.util.find_spec(module) is None:
        raise QsweepError(f"{error}; or: pip install {model.fallback}") from error
    from qsweep.models.smollm2 import materialise

    def make(out: Path) -> dict:
        materialise(out)
        return {}

    identity = {"package": model.fallback, "version": version(str(model.fallback))}
    entry, _ = store.build("models", identity, make)
    return entry.path
