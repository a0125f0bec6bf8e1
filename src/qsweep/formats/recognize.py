"""What an artifact is that somebody else made: which container reads it."""

from pathlib import Path

from qsweep.base.errors import ConfigError
from qsweep.formats.container import Container, container, containers
from qsweep.formats.weights import find_settings


def recognize(path: Path) -> Container:
    """The container of the artifact at ``path``, a GGUF file or a directory.

    Raises:
        ConfigError: It is none that can be read; the line says why.
        ArtifactCorrupt: Its configuration cannot be read.
    """
    if path.suffix == ".gguf":
        return container("gguf")
    if path.is_file():
        raise ConfigError(
            f"{path}: neither a GGUF file nor a checkpoint's directory; point at one of them"
        )
    if not (path / "config.json").is_file():
        if any(path.glob("*.gguf")):
            return container("gguf")
        raise ConfigError(
            f"{path}: neither an artifact of a store nor a checkpoint with a config.json"
        )
    settings = find_settings(path)
    if settings is None:
        return container("hf")
    method = settings["quant_method"]
    for found in containers():
        if found.claims(settings):
            if (why := found.refusal(path, settings)) is not None:
                raise ConfigError(f"{path}: a checkpoint in {method} that cannot be read: {why}")
            return found
    if packing := settings.get("packing_format"):
        method = f"{method}, packed as {str(packing)[:60]}"
    known = sorted({name for found in containers() for name in found.quant_methods})
    raise ConfigError(
        f"{path}: a checkpoint in {method}; those that can be read are GGUF, unquantized ones, "
        f"and {', '.join(known)}"
    )
