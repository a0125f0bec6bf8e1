"""What llama.cpp cannot write or run, and what belongs beside a file that it can."""

import shutil
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsweep.base.errors import BackendUnavailable, IncompatibleTrial, UnknownLayout
from qsweep.formats.artifact import Artifact
from qsweep.formats.gguf.types import FileType
from qsweep.models.source import ModelFacts, SourceModel

if TYPE_CHECKING:
    from qsweep.formats.gguf.reader import GGUFFile
    from qsweep.quantizers.conversion.base import UnquantizedFile

# Types that so far only llama.cpp itself reads.
_NOVEL = ("TQ1_0", "TQ2_0", "Q1_0", "Q2_0", "NVFP4")
# What goes beside the model file, so that the tokenizer can be loaded from the artifact too.
_COPIED = ("*.json", "*.jinja", "*.model", "*.tiktoken", "vocab.txt", "merges.txt", "LICENSE*")
_NOT_COPIED = ("*.index.json",)


def llama_cpp_version() -> str:
    """llama-cpp-python's version, or ``missing``."""
    from qsweep.formats.gguf.converter import package_version

    try:
        return package_version()
    except BackendUnavailable:
        return "missing"


def require_converter(model: ModelFacts) -> None:
    """Refuse a model that llama.cpp's converter does not know.

    Raises:
        BackendUnavailable: the converter, or llama-cpp-python itself, is not installed.
        IncompatibleTrial: names the architecture.
    """
    from qsweep.formats.gguf.converter import architectures
    from qsweep.models.facts import read_config, text_config

    config = read_config(model.path)
    named = text_config(config).get("architectures") or [model.model_type]
    if named[0].lower() not in {name.lower() for name in architectures()}:
        raise IncompatibleTrial(f"llama.cpp's converter does not know {named[0]}")


def require_runnable(
    name: str, unexplained: str | None, agreement: Mapping[str, Any], own_run: bool
) -> None:
    """Refuse a file of which nothing could be measured.

    What is led back to the checkpoint is measured as a dense model. The rest only llama.cpp can run.

    Args:
        name: The model's name, for the message.
        unexplained: What no rule leads back; None if all is.
        agreement: Whether llama.cpp can run the file, as measured.
        own_run: Whether its run is asked for.

    Raises:
        UnknownLayout: the line names the tensor, and what to do.
    """
    if unexplained is None:
        return
    if agreement.get("kld") is None:
        why = agreement.get("reason") or "nobody knows whether llama.cpp can run the file"
        raise UnknownLayout(f"gguf of {name}: {unexplained}, and llama.cpp cannot run it: {why}")
    if not own_run:
        raise UnknownLayout(
            f"gguf of {name}: {unexplained}, so no dense model can be made of it; "
            "eval.kld_native=true measures llama.cpp's own run"
        )


def gguf_artifact(
    model: SourceModel, base: "UnquantizedFile", type_: FileType, out: Path, details: dict[str, Any]
) -> Artifact:
    """Write what belongs beside a quantized file, and count what it stores.

    Args:
        model: The unquantized model.
        base: Its conversion.
        type_: What was written.
        out: The directory with the quantized file.
        details: What else is worth reporting.
    """
    from safetensors.torch import save_file

    from qsweep.formats.gguf.dense import MODEL_FILE, ORDERS_FILE
    from qsweep.formats.gguf.reader import read_gguf
    from qsweep.formats.gguf.stored import stored_size, stored_tensors

    if base.layout.orders:
        save_file(dict(base.layout.orders), out / ORDERS_FILE)
    _copy_small_files(model.path, out)
    file = read_gguf(out / MODEL_FILE)
    linears = linear_tensors(model.facts, base)
    return Artifact(
        path=out,
        format="gguf",
        size=stored_size(file, stored_tensors(file, linears)),
        runtimes=serving(
            {type_.name, *(tensor.type.name for tensor in file.tensors.values())},
            agrees=base.agreement["agrees"],
        ),
        details=_details(file, linears, type_, base) | details,
    )


def runtimes(type_: FileType, base: "UnquantizedFile") -> tuple[str, ...]:
    """What serves a file; nothing where llama.cpp computes another function from it."""
    return serving({type_.name}, agrees=base.agreement["agrees"])


def serving(types: Collection[str], *, agrees: bool) -> tuple[str, ...]:
    """What serves a file of these types; nothing where llama.cpp computes another function from it."""
    if not agrees:
        return ()
    return ("llama.cpp",) if any(type_ in _NOVEL for type_ in types) else ("llama.cpp", "ollama")


def linear_tensors(facts: ModelFacts, base: "UnquantizedFile") -> set[str]:
    """Names in the file of the decoder's linear layers; none where not all are known."""
    places = {base.checkpoint.place(name).tensor for name in facts.linears}
    rules = [base.layout.rules.get(name) for name in places]
    known = [rule for rule in rules if rule is not None]
    return {t for rule in known for t in rule.tensors} if len(known) == len(rules) else set()


def _details(
    file: "GGUFFile",
    linears: set[str],
    type_: FileType,
    base: "UnquantizedFile",
) -> dict[str, Any]:
    from qsweep.formats.gguf.rules import to_json

    used = Counter(file.tensors[name].type.name for name in linears)
    rest = Counter(
        t.type.name for t in file.tensors.values() if t.name not in linears and len(t.shape) > 1
    )
    return {
        "type": type_.name,
        "tensor_types": dict(used.most_common()),
        "other_tensor_types": dict(rest.most_common()),
        "fallback": any(file.tensors[name].shape[-1] % type_.block for name in linears),
        "tensors": None if base.unexplained else to_json(base.layout, base.checkpoint.infos),
        **({"unexplained": base.unexplained} if base.unexplained else {}),
        "llama_cpp": base.agreement,
        **({"metadata_added": base.added} if base.added else {}),
    }


def _copy_small_files(source: Path, out: Path) -> None:
    for pattern in _COPIED:
        for path in source.glob(pattern):
            if path.is_file() and not any(path.match(no) for no in _NOT_COPIED):
                shutil.copyfile(path, out / path.name)
