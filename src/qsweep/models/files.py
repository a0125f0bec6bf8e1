"""Which files of a directory are the model: one answer for everybody who reads it.

A directory may hold more than one set of weights: shards with their index, and a ``model.safetensors``
that a merge left beside them; variants; a vendor's ``consolidated.safetensors``. *The* checkpoint is
what transformers loads: ``model.safetensors``, else what ``model.safetensors.index.json`` names
(``_get_resolved_checkpoint_files`` in transformers 5.18). Whatever else lies there counts for nothing.
"""

import os
import re
import stat
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from qsweep.base.errors import ConfigError
from qsweep.base.files import open_regular, write_json
from qsweep.models.config import file_errors, read_json

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
# Names by which everybody finds the weights who looks for files rather than reads the index.
_STANDARD_NAME = re.compile(r"model(-\d+-of-\d+)?\.safetensors$")
_PICKLED = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt", "gptq_model*.bin")
# What determines a model's numbers beside its weights: configuration, tokenizer, code.
CONTENT = (
    *("config.json", "tokenizer*", "*.model", "vocab.json", "vocab.txt", "merges.txt"),
    *("special_tokens_map.json", "added_tokens.json", "*.tiktoken", "tekken.json", "*.py"),
)


def weight_files(path: Path) -> list[Path]:
    """The safetensors files that make up the checkpoint in a directory, in order.

    Raises:
        ConfigError: there are none that transformers would load, or the index is damaged or names
            one that is missing.
    """
    single = path / _SINGLE
    if single.exists():
        return [_regular(single)]
    if not (path / _INDEX).exists():
        raise ConfigError(_why_no_weights(path))
    files = [path / name for name in sorted(set(weight_map(path).values()))]
    for file in files:
        if not file.exists():
            raise ConfigError(f"{file}: missing, though {_INDEX} names it; fetch it again")
    return [_regular(file) for file in files]


def weight_map(path: Path) -> dict[str, str]:
    """The file's name for each tensor, as the index of a checkpoint in shards says. ConfigError."""
    index = path / _INDEX
    content = read_json(_regular(index))
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not places:
        raise ConfigError(f"{index}: not an index of weights (it has no weight_map)")
    for tensor, name in places.items():
        if not isinstance(name, str):
            raise ConfigError(
                f"{index}: not an index of weights (weight_map gives {name!r} as the file of {tensor})"
            )
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ConfigError(f"{index}: {tensor} lies outside of the model's directory ({name})")
    # transformers writes into it, and so cannot do without.
    if not isinstance(content.get("metadata"), dict):
        raise ConfigError(f'{index}: has no "metadata", without which transformers cannot load it')
    return places


def index_file(path: Path) -> Path | None:
    """The index that belongs to the checkpoint: of shards, or one that names the single file alone."""
    index = path / _INDEX
    if not index.exists():
        return None
    if (path / _SINGLE).exists():
        try:
            return index if set(weight_map(path).values()) == {_SINGLE} else None
        except ConfigError:
            return None
    return index


def saved_weight_files(path: Path) -> list[Path]:
    """What a library has saved, also under names of its own and without an index. ConfigError."""
    if not (path / _SINGLE).exists() and not (path / _INDEX).exists():
        own = sorted(f for f in path.glob("*.safetensors") if not f.name.startswith("adapter"))
        if own:
            return own
    return weight_files(path)


def content_files(path: Path) -> list[Path]:
    """All that determines a model's numbers: the checkpoint, configuration, tokenizer, code.

    Raises:
        ConfigError: one of them is no file that can be read.
    """
    index = index_file(path)
    found = {*weight_files(path), *([] if index is None else [index])}
    # By their names in the directory: a glob passes over a link that leads nowhere.
    for file in path.iterdir():
        if not any(fnmatchcase(file.name, pattern) for pattern in CONTENT) or file.is_dir():
            continue
        if not file.exists():
            raise ConfigError(f"{file}: a link that leads nowhere; fetch the file again")
        if not file.name.endswith((".safetensors", ".safetensors.index.json")):
            found.add(_regular(file))
    return sorted(found)


def check_directory(path: Path) -> None:
    """Refuse a directory in which a library that opens its files would hang.

    Raises:
        ConfigError: a pipe, a socket or a device lies in it, or an adapter, which transformers adds
            to the weights where peft is installed, and nobody else does.
    """
    for entry in sorted(path.iterdir()):
        try:
            mode = entry.stat().st_mode
        except OSError:  # a link that leads nowhere, and concerns nobody unless it is needed
            continue
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            _regular(entry)
    if (path / "adapter_config.json").exists():
        raise ConfigError(
            f"{path}: has an adapter beside its weights (adapter_config.json); merge it into them, "
            "or move it elsewhere to measure the model without it"
        )


def standard_directory(path: Path, folder: Path, config: Mapping[str, Any] | None = None) -> Path:
    """A directory that holds the checkpoint alone, under the names that everybody knows.

    For libraries that look for files by themselves, each by rules of its own. It is ``path`` itself
    where those cannot go wrong, and else links in ``folder``, which is made.

    Args:
        path: The model's directory.
        folder: A path at which nothing is yet.
        config: The configuration that is right, where ``config.json`` is not.
    """
    there = {file.name for file in path.glob("*.safetensors")}
    names = [str(file.relative_to(path)) for file in weight_files(path)]
    usual = there == set(names) and all(_STANDARD_NAME.fullmatch(name) for name in names)
    indexed = (path / _INDEX).exists() == (index_file(path) is not None)
    if usual and indexed and config is None:
        return path
    link_model(path, folder)
    if config is not None:
        (folder / "config.json").unlink()
        write_json(folder / "config.json", dict(config))
    return folder


def link_model(path: Path, folder: Path) -> None:
    """Make ``folder`` of links to the model's files: of its weights, those of the checkpoint alone."""
    folder.mkdir(parents=True)
    for file in sorted(path.iterdir()):
        weights = file.name.endswith((".safetensors", ".safetensors.index.json"))
        if file.is_file() and not weights:
            (folder / file.name).symlink_to(file.resolve())
    files = weight_files(path)
    if files == [path / _SINGLE]:
        (folder / _SINGLE).symlink_to(files[0].resolve())
        return
    names = [str(file.relative_to(path)) for file in files]
    if not all(_STANDARD_NAME.fullmatch(name) for name in names):
        usual = [f"model-{n + 1:05}-of-{len(files):05}.safetensors" for n in range(len(files))]
    else:
        usual = names
    for file, name in zip(files, usual, strict=True):
        (folder / name).symlink_to(file.resolve())
    renamed = dict(zip(names, usual, strict=True))
    index = read_json(path / _INDEX)
    places = {tensor: renamed[name] for tensor, name in weight_map(path).items()}
    write_json(folder / _INDEX, {**index, "weight_map": places})


def _regular(path: Path) -> Path:
    with file_errors(path):
        open_regular(path).close()
    return path


def _why_no_weights(path: Path) -> str:
    if os.path.lexists(path / _SINGLE):
        return f"{path / _SINGLE}: a link that leads nowhere; fetch the file again"
    return next(_explanations(path), f"{path}: no *.safetensors file")


def _explanations(path: Path) -> Iterator[str]:
    found = sorted(file.name for file in path.glob("*.safetensors"))
    others = [n for n in found if not n.startswith(("adapter", "consolidated"))]
    if len(others) == 1 and "-of-" not in others[0]:
        yield f"{path}: transformers looks for {_SINGLE} and finds {others[0]}; rename it"
    if others:
        yield (
            f"{path}: {len(others)} *.safetensors files ({others[0]}, …) and no {_INDEX} that says "
            "which belong to the model; fetch it from where they came from"
        )
    if any(name.startswith("consolidated") for name in found):
        yield (
            f"{path}: only {found[-1]}, which transformers does not load; "
            f"fetch {_SINGLE}, or the shards with {_INDEX}"
        )
    if found:
        yield f"{path}: only an adapter ({found[0]}); merge it into the model that it was made for"
    for pattern in _PICKLED:
        if (pickled := next(path.glob(pattern), None)) is not None:
            yield (
                f"{path}: only pickled weights ({pickled.name}), which can run code and are never "
                "loaded; save the model as safetensors, or take a revision that has them"
            )
    if (gguf := next(path.glob("*.gguf"), None)) is not None:
        yield f"{path}: only {gguf.name}; qsweep starts from unquantized safetensors weights"
