"""Artifacts of other makers, from a hub's repository to files on this machine."""

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from qsweep.base.errors import ConfigError, QsweepError
from qsweep.models.files import CONTENT
from qsweep.models.hub import hub_errors

# Of a checkpoint, all that reading and recognizing it takes, and what says who made it.
_CHECKPOINT = (
    *("*.safetensors", "*.safetensors.index.json", *CONTENT),
    *("quantize_config.json", "quant_config.json", "hf_quant_config.json"),
    *("generation_config.json", "chat_template*", "README.md"),
)
# Weights in other forms, and adapters, which are nobody's whole model.
_NOT_WANTED = ("original/*", "consolidated*", "adapter*", "onnx/*", "*.py")
_WILDCARDS = "*?["
_TIMEOUT_S = 20.0


def fetch_artifacts(repo: str, file: str | None, revision: str) -> list[Path]:
    """Files or the checkpoint of a repository, in the hub's cache: only what is needed is fetched.

    Args:
        repo: ``ORG/NAME``.
        file: A GGUF file's name in it, or a pattern of several; None for a whole checkpoint.
        revision: A branch, a tag or a commit.

    Returns:
        The files in sorted order, all parts of a split one, or the checkpoint's directory.

    Raises:
        ConfigError: The repository, the revision or the file does not exist; near names follow.
        QsweepError: It needs a log-in, or the hub cannot be reached and the cache lacks it.
    """
    what = f"quant.repo={repo}"
    _check_repo(repo)
    with hub_errors(what, repo, revision, "quant.path=DIR"):
        names, online = _names(repo, revision)
    wanted = _wanted(what, names, file, revision, online)
    with hub_errors(what, repo, revision, "quant.path=DIR"):
        directory = _download(repo, revision, wanted, online)
    if file is None:
        return [directory]
    found = [directory / name for name in wanted if name.endswith(".gguf")]
    if absent := next((path for path in found if not path.exists()), None):
        raise QsweepError(f"{what}: {absent.name} is not whole in the hub cache; fetch it again")
    return found


def _check_repo(repo: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigError(f"quant.repo={repo}: is no repository's name; give ORG/NAME") from error


def _names(repo: str, revision: str) -> tuple[list[str], bool]:
    """The names of a repository's files, and whether they are from the hub: else from the cache."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        # One request, where listing files tries for half a minute if nobody answers.
        info = HfApi().model_info(repo, revision=revision, timeout=_TIMEOUT_S)
        return sorted(sibling.rfilename for sibling in info.siblings or ()), True
    except HfHubHTTPError:
        raise
    except Exception as error:  # of whatever client the hub's library uses
        # What was fetched earlier needs no network at all.
        directory = _cached(repo, revision)
        if directory is None:
            if isinstance(error, OfflineModeIsEnabled):
                raise
            raise ConnectionError(str(error)) from error
        found = [path for path in directory.rglob("*") if path.is_file()]
        return sorted(str(path.relative_to(directory)) for path in found), False


def _cached(repo: str, revision: str) -> Path | None:
    """What the cache has of a repository: the library itself gives nothing that is not whole."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model")
    try:
        commit = (folder / "refs" / revision).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        commit = revision
    found = folder / "snapshots" / commit
    return found if found.is_dir() else None


def _wanted(
    what: str, names: Sequence[str], file: str | None, revision: str, online: bool
) -> list[str]:
    """Of a repository's files those to fetch. Raises ConfigError."""
    gguf = [name for name in names if name.endswith(".gguf")]
    cards = [name for name in names if name == "README.md"]
    if file is None:
        found = [
            name
            for name in names
            if any(fnmatchcase(name, pattern) for pattern in _CHECKPOINT)
            and not any(fnmatchcase(name, pattern) for pattern in _NOT_WANTED)
        ]
        if any(name.endswith(".safetensors") for name in found):
            return found
        if gguf:
            shown = ", ".join(gguf[:3]) + (", …" if len(gguf) > 3 else "")
            raise ConfigError(
                f"{what}: has {len(gguf)} GGUF files ({shown}) and no checkpoint; name one with "
                "quant.file=NAME, or several with quant.file='*Q4*'"
            )
        raise ConfigError(f"{what}: has neither safetensors nor GGUF files, and no others are read")
    if any(wildcard in file for wildcard in _WILDCARDS):
        found = [name for name in gguf if fnmatchcase(name, file)]
    else:
        found = _with_parts(file, gguf)
    if found:
        return sorted({*found, *cards})
    where = "the hub's" if online else "the hub cache's (the hub cannot be reached)"
    near = difflib.get_close_matches(file, gguf, n=3, cutoff=0.4) or gguf[:3]
    hint = f"; there are {', '.join(near)}" if near else "; there is no GGUF file"
    raise ConfigError(f"{what} quant.file={file}: {where} revision {revision} has none such{hint}")


def _with_parts(file: str, names: Sequence[str]) -> list[str]:
    stem, separator, count = file.rpartition("-of-")
    if not separator or len(stem) < 6:
        return [name for name in names if name == file]
    return [name for name in names if fnmatchcase(name, f"{stem[:-5]}?????-of-{count}")]


def _download(repo: str, revision: str, wanted: Sequence[str], online: bool) -> Path:
    from huggingface_hub import snapshot_download

    if not online and (directory := _cached(repo, revision)) is not None:
        return directory
    patterns = [_literally(name) for name in wanted]
    return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))


def _literally(name: str) -> str:
    # A name as a pattern that matches itself alone.
    return "".join(f"[{c}]" if c in _WILDCARDS else c for c in name)
