"""What an artifact is that somebody else made: which container reads it."""

from pathlib import Path

from qsweep.base.errors import ConfigError
from qsweep.formats.artifact_files import is_gguf
from qsweep.formats.container import Container, container, containers
from qsweep.formats.weights import find_settings

# Methods that transformers 5.18 knows and nothing here can read, each with the reason.
_KERNEL = "only its kernel, which needs a GPU, says what its codes stand for"
UNREADABLE = {
    "aqlm": f"codes of learned codebooks; {_KERNEL}",
    "bitnet": "ternary weights that are served with activations of 8 bits, not as dense weights",
    "eetq": f"packed for its kernel; {_KERNEL}",
    "fouroversix": f"rotated FP4; {_KERNEL}",
    "fp_quant": f"rotated FP4; {_KERNEL}",
    "gemma": "the checkpoint is unquantized and is quantized while it is loaded",
    "higgs": f"codes of a Hadamard-rotated grid; {_KERNEL}",
    "metal": "packed for Apple's GPUs alone",
    "nvfp4": "the checkpoint is unquantized and is packed while it is loaded",
    "paroquant": f"weights that are rotated in pairs; {_KERNEL}",
    "quanto": "transformers never writes one, and optimum-quanto is no longer maintained",
    "quark": "AMD Quark reads it alone",
    "sinq": "only the package sinq reads it",
    "spqr": f"sparse outliers beside codes; {_KERNEL}",
    "vptq": f"codes of learned codebooks; {_KERNEL}",
}
PICKLED_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def recognize(path: Path) -> Container:
    """The container of the artifact at ``path``, a GGUF file or a directory.

    Raises:
        ConfigError: It is none that can be read; the line says why.
        ArtifactCorrupt: Its configuration cannot be read.
    """
    if is_gguf(path):
        return container("gguf")
    if path.suffix in PICKLED_SUFFIXES and path.is_file():
        raise ConfigError(
            f"{path}: pickled weights, which can run code and are never loaded; take a revision in "
            "safetensors or GGUF"
        )
    if path.suffix == ".safetensors" and path.is_file():
        raise ConfigError(f"{path}: weights alone; point at the directory with their config.json")
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
    if method in UNREADABLE:
        raise ConfigError(
            f"{path}: a checkpoint in {method} that cannot be read: {UNREADABLE[method]}"
        )
    if packing := settings.get("packing_format"):
        method = f"{method}, packed as {str(packing)[:60]}"
    known = sorted({name for found in containers() for name in found.quant_methods})
    raise ConfigError(
        f"{path}: a checkpoint in {method}; those that can be read are GGUF, unquantized ones, "
        f"and {', '.join(known)}"
    )
