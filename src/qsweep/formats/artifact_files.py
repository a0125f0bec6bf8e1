"""Where an artifact of another maker lies, and which of its files determine what it computes."""

import difflib
import os
import re
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from qsweep.base.errors import ArtifactCorrupt, ConfigError
from qsweep.base.files import open_regular
from qsweep.base.manifest import MANIFEST
from qsweep.base.names import absolute_path
from qsweep.models.config import file_errors
from qsweep.models.files import CONTENT, saved_weight_files

# What a wildcard of Python's glob is; a bracket alone may be part of a folder's name.
_WILDCARD = re.compile(r"[*?]|\[[^\]]+\]")
# As llama.cpp names the parts of a split file (llama_split_path in llama.h).
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")
# Beside the weights: which of the files in a checkpoint's directory say what their codes mean.
_SETTINGS = ("quantize_config.json", "quant_config.json", "hf_quant_config.json", "chat_template*")
# Of a model's other parts, such as the projector of its images; the name of a model that was quantized
# by an importance matrix may say so in its middle.
_NO_MODEL = re.compile(r"^(mmproj|imatrix)|[-_.]mmproj([-_.]|$)|[-_.]imatrix\.gguf$", re.IGNORECASE)


def is_gguf(path: Path) -> bool:
    """Whether a file is one of llama.cpp's, by its name or its first bytes."""
    if path.suffix == ".gguf":
        return path.is_file()
    try:
        with open_regular(path) as file:
            return file.read(4) == b"GGUF"
    except OSError:
        return False


def is_stored(path: Path) -> bool:
    """Whether a directory is an entry of a store of qsweep's."""
    return path.parent.name == "artifacts" and (path / MANIFEST).is_file()


def find_place(path: str | Path, where: str = "quant.path") -> Path:
    """A GGUF file or the directory of a checkpoint, from a path as typed.

    A directory that holds one GGUF file and no checkpoint stands for that file; a split file is
    named by its first part.

    Args:
        path: Absolute or not, with ``~`` or not.
        where: The option that gives it, for messages.

    Raises:
        ConfigError: There is nothing, or several files that it could mean.
    """
    place = absolute_path(str(path), where)
    try:
        mode = place.stat().st_mode
    except (OSError, ValueError) as error:  # a null byte is no part of a name
        raise ConfigError(f"{where}={path}: {_why_not_found(place, error)}") from error
    if stat.S_ISREG(mode):
        return _first_part(place)
    if not stat.S_ISDIR(mode):
        with file_errors(place):
            open_regular(place).close()
    with file_errors(place):
        found = sorted(file.name for file in place.iterdir())
    if is_stored(place) or any(name.endswith(".safetensors") for name in found):
        return place
    files = gguf_models([place / n for n in found if n.endswith(".gguf")])
    if len(files) > 1:
        names = ", ".join(file.name for file in files[:3]) + (", …" if len(files) > 3 else "")
        raise ConfigError(
            f"{where}={path}: {len(files)} GGUF files ({names}); name one of them, or measure all "
            f"with '{where}={place}/*.gguf'"
        )
    return files[0] if files else place


def is_pattern(path: str) -> bool:
    """Whether a path has a wildcard, and is not simply there under that name."""
    return _WILDCARD.search(path) is not None and not Path(path).expanduser().exists()


def find_places(pattern: str, where: str = "quant.path") -> list[Path]:
    """All that a pattern with ``*``, ``?``, ``[…]`` and ``**`` matches, sorted by path.

    The parts of a split file count once, by the first of them that is there.

    Raises:
        ConfigError: Nothing matches.
    """
    import glob

    absolute = absolute_path(pattern, where)
    found = [Path(match) for match in glob.glob(str(absolute), recursive=True)]
    if not found:
        raise ConfigError(f"{where}={pattern}: nothing matches{_nothing_near(absolute)}")
    # ``**`` follows links, also one that leads into its own folder again and again.
    real: dict[str, Path] = {}
    for match in sorted(found, key=lambda path: (len(path.parts), str(path))):
        real.setdefault(os.path.realpath(match), match)
    return one_of_each_split(sorted(real.values()))


def gguf_models(files: Iterable[Path]) -> list[Path]:
    """Those of GGUF files that hold models, sorted; of a split file's parts the first that is there."""
    models = [file for file in files if not _NO_MODEL.search(file.name)]
    return one_of_each_split(sorted(models))


def one_of_each_split(files: Sequence[Path]) -> list[Path]:
    """Files in their order, of those that are parts of one only the first."""
    kept: dict[str, Path] = {}
    for file in files:
        part = _PART.fullmatch(file.name)
        name = f"{part['stem']}-of-{part['count']}.gguf" if part else file.name
        kept.setdefault(str(file.with_name(name)), file)
    return list(kept.values())


def split_of(file: Path) -> tuple[int, int] | None:
    """The number of a part, from one, and how many there are, as its name says; None: no part."""
    named = _PART.fullmatch(file.name)
    return None if named is None else (int(named["number"]), int(named["count"]))


def parts_of(file: Path) -> list[Path]:
    """The parts of a GGUF file in their order; itself alone where it is not split.

    Raises:
        ArtifactCorrupt: A part is missing.
    """
    named = _PART.fullmatch(file.name)
    if named is None:
        return [file]
    count = int(named["count"])
    parts = [
        file.with_name(f"{named['stem']}-{number:05}-of-{named['count']}.gguf")
        for number in range(1, count + 1)
    ]
    missing = [part.name for part in parts if not part.exists()]
    if missing or not parts:
        named_part = missing[0] if missing else file.name
        more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ArtifactCorrupt(
            f"{file.parent / named_part}: missing, one of the {count} parts of {named['stem']}{more}"
        )
    return parts


def whole_name(place: Path) -> str:
    """What a file or directory is called, without suffix and number of a part."""
    part = _PART.fullmatch(place.name)
    return part["stem"] if part else place.name.removesuffix(".gguf")


def counting_files(place: Path) -> dict[str, Path]:
    """The files that determine what an artifact computes and how it is read, by name.

    Of GGUF files the names do not count, so that a renamed copy is the same artifact.

    Raises:
        ConfigError: A directory without weights that could be read; pickled ones never are.
        ArtifactCorrupt: A part of a split file is missing.
    """
    if place.is_file():
        return {f"part {number}": part for number, part in enumerate(parts_of(place), 1)}
    with file_errors(place):
        if is_stored(place):
            files = [f for f in place.rglob("*") if f.is_file() and f.name != MANIFEST]
            return {str(file.relative_to(place)): file for file in sorted(files)}
        patterns = (*CONTENT, *_SETTINGS, "*.safetensors.index.json")
        beside = {f for pattern in patterns for f in place.glob(pattern) if f.is_file()}
    files = sorted({*saved_weight_files(place), *beside})
    return {str(file.relative_to(place)): file for file in files}


def _first_part(file: Path) -> Path:
    part = _PART.fullmatch(file.name)
    if part is None:
        return file
    first = file.with_name(f"{part['stem']}-00001-of-{part['count']}.gguf")
    return first if first.exists() else file


def _why_not_found(place: Path, error: OSError | ValueError) -> str:
    if not isinstance(error, OSError):
        return str(error)
    if place.is_symlink():
        return "a link that leads nowhere"
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return f"no such file or directory{_near(place)}"
    return f"cannot be read ({error.strerror})"


def _near(place: Path) -> str:
    try:
        names = [file.name for file in place.parent.iterdir()]
    except OSError:
        return ""
    close = difflib.get_close_matches(place.name, names, n=2, cutoff=0.6)
    return "; did you mean " + " or ".join(map(repr, close)) + "?" if close else ""


def _nothing_near(pattern: Path) -> str:
    folder = pattern.parent
    while _WILDCARD.search(str(folder)) and not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        return f"; there is no folder {folder}"
    try:
        there = sorted(file.name for file in folder.iterdir())
    except OSError as error:
        return f"; {folder} cannot be read ({error.strerror})"
    shown = ", ".join(there[:5]) + (", …" if len(there) > 5 else "")
    return f"; in {folder} there are {shown}" if there else f"; {folder} is empty"
