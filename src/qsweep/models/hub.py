"""From a model's name to its directory, and to the hash of its content."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from qsweep.base.errors import ConfigError, QsweepError
from qsweep.base.file_hashes import file_hash
from qsweep.base.keys import key_of
from qsweep.base.store import Store
from qsweep.models.files import CONTENT, content_files, weight_files
from qsweep.models.settings import ModelConfig

_DOWNLOAD = [
    *("*.safetensors", "*.safetensors.index.json", *CONTENT),
    *("generation_config.json", "chat_template*", "LICENSE*"),
]


def resolve(model: ModelConfig) -> Path:
    """The directory of a model, fetched if need be; the file of a reference pack in its place.

    Raises:
        ConfigError: ``model.path`` is not a directory.
        QsweepError: the hub cannot be reached or refuses; ``model.hint`` follows.
    """
    if model.pack is not None:
        return Path(model.pack).expanduser().absolute()
    if model.path is not None:
        path = Path(model.path).expanduser().absolute()
        if not path.is_dir() and not (path.suffix == ".gguf" and path.is_file()):
            what = "is a file, not a directory" if path.exists() else "no such directory"
            raise ConfigError(f"model.path={model.path}: {what}")
        return path
    try:
        return _from_hub(model)
    except QsweepError as error:
        if model.hint is None:
            raise
        raise QsweepError(f"{error}; {model.hint}") from error


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
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

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
    with hub_errors(name, str(model.repo), model.revision, "model.path=DIR"):
        # Where the hub does not answer, this too gives what is in the cache.
        fetched = snapshot(local_files_only=False)
    if _is_whole(fetched):
        return fetched
    raise QsweepError(
        f"{name}: {model.repo} is not whole in the hub cache ({fetched}); either the hub cannot "
        "be reached, or it has no safetensors of it, and pickled weights are never loaded"
    )


@contextlib.contextmanager
def hub_errors(name: str, repo: str, revision: str, instead: str) -> Iterator[None]:
    """Say in one line why a hub does not give a repository.

    Args:
        name: Which option asked for it.
        repo: ``ORG/NAME``.
        revision: A branch, a tag or a commit.
        instead: The option that takes a local copy.

    Raises:
        QsweepError: Whatever the hub's library raises.
    """
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except GatedRepoError as error:
        raise QsweepError(
            f"{name}: {repo} is gated; accept its licence on the hub and log in (hf auth login)"
        ) from error
    except RevisionNotFoundError as error:
        raise QsweepError(f"{name}: {repo} has no revision {revision!r}") from error
    except RepositoryNotFoundError as error:
        raise QsweepError(f"{name}: the hub has no model {repo} (or it is private)") from error
    except OfflineModeIsEnabled as error:
        raise QsweepError(
            f"{name}: {repo} is not in the hub cache and HF_HUB_OFFLINE is set; "
            f"unset it, or give a local copy with {instead}"
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise QsweepError(
            f"{name}: the model hub cannot be reached for {repo}; "
            f"check the network, or give a local copy with {instead}"
        ) from error


def _is_whole(snapshot: Path) -> bool:
    # A download that was interrupted leaves those of the shards that had arrived.
    try:
        weight_files(snapshot)
    except ConfigError:
        return False
    return (snapshot / "config.json").exists()
