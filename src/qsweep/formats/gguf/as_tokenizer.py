"""The tokenizer that a GGUF file's metadata describes, as Hugging Face's files.

transformers builds it (``integrations.gguf.gguf_tokenizer_mapping``). How text is split before pieces
are looked up is only a name in the file; where transformers does not know it, or does otherwise, that
shows when llama.cpp splits the same text.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsweep.base.errors import IncompatibleTrial, in_one_line
from qsweep.formats.gguf.header import printable
from qsweep.formats.gguf.reader import GGUFFile

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Names of one way to split that transformers' table leaves out: each digit by itself, then as GPT-2
# (LLAMA_VOCAB_PRE_TYPE_SMOLLM and its like in llama.cpp's src/llama-vocab.cpp).
_SINGLE_DIGITS = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
_BYTE_LEVEL, _SENTENCEPIECE = "gpt2", "llama"
_ENDS = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
# Words, digits, spaces, line ends, several scripts, a combination of them: where ways to split differ.
_SAMPLE = (
    "The quick brown fox didn't jump over 1234567 lazy dogs; it's 3.14 o'clock, isn't it?\n\n"
    "def f(x):\n    return x**2 + 10\t# Größe, naïve café\r\n  Привет, мир! 你好，世界。 "
    "नमस्ते こんにちは 안녕 🙂👍🏽  trailing   spaces   \n\nHELLO World's URL: https://example.org/a?b=c&d"
)


def write_tokenizer(file: GGUFFile, out: Path) -> list[str]:
    """Write the tokenizer's files into the directory ``out``.

    Returns:
        In what it differs from llama.cpp's own on a sample of text, in one line; empty if in nothing.

    Raises:
        IncompatibleTrial: transformers builds no tokenizer of its kind, or there is none in the file.
    """
    from transformers import PreTrainedTokenizerFast

    backend = build_tokenizer(file)
    tokens = file.metadata["tokenizer.ggml.tokens"]
    ends = {}
    for name, own in _ENDS.items():
        number = file.metadata.get(f"tokenizer.ggml.{own}_token_id")
        if isinstance(number, int) and 0 <= number < len(tokens):
            ends[f"{name}_token"] = tokens[number]
    if _puts_bos(file) and "bos_token" in ends:
        _put_first(backend, ends["bos_token"])
    length = file.setting("context_length")
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        clean_up_tokenization_spaces=False,
        **({"model_max_length": length} if isinstance(length, int) else {}),
        **ends,
    )
    template = file.metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        made.chat_template = template  # kept as text
    made.save_pretrained(out)
    return _compared(file, backend)


def build_tokenizer(file: GGUFFile) -> "Tokenizer":
    """The tokenizer that a file describes. Raises IncompatibleTrial: it cannot be built."""
    from tokenizers import pre_tokenizers
    from transformers.integrations.gguf import GGUF_TOKENIZER_MAPPING, convert_gguf_tokenizer

    if not file.metadata.get("tokenizer.ggml.tokens"):
        raise IncompatibleTrial(
            f"{file.path}: has no tokenizer; give the model that it was made from"
        )
    stated = {
        name: file.metadata[f"tokenizer.{key}"]
        for key, name in GGUF_TOKENIZER_MAPPING["tokenizer"].items()
        if f"tokenizer.{key}" in file.metadata
    }
    try:
        backend: Any = convert_gguf_tokenizer(file.architecture, stated)[0]
    except Exception as error:  # tokenizers raises plain exceptions over a vocabulary that is none
        raise IncompatibleTrial(
            f"{file.path}: transformers makes no tokenizer of it ({printable(in_one_line(error))})"
        ) from error
    if stated.get("tokenizer_type") == _BYTE_LEVEL and _splitter(file) in _SINGLE_DIGITS:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    return backend


def _splitter(file: GGUFFile) -> str:
    return str(file.metadata.get("tokenizer.ggml.pre", ""))


def _puts_bos(file: GGUFFile) -> bool:
    """Whether a text begins with BOS; SentencePiece's do where nothing is said (llama-vocab.cpp)."""
    stated = file.metadata.get("tokenizer.ggml.add_bos_token")
    if isinstance(stated, bool):
        return stated
    return file.metadata.get("tokenizer.ggml.model") == _SENTENCEPIECE


def _put_first(backend: Any, token: str) -> None:
    from tokenizers.processors import TemplateProcessing

    backend.post_processor = TemplateProcessing(
        single=f"{token} $A",
        pair=f"{token} $A {token} $B",
        special_tokens=[(token, backend.token_to_id(token))],
    )


def _compared(file: GGUFFile, backend: Any) -> list[str]:
    """Where the tokenizer splits a sample otherwise than llama.cpp, if that is installed."""
    try:
        from qsweep.formats.gguf.native import tokenize
    except ImportError:
        return []
    theirs = tokenize(file.path, _SAMPLE)
    ours = backend.encode(_SAMPLE, add_special_tokens=False).ids
    if theirs is None or ours == theirs:
        return []
    at = next(
        (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b),
        min(len(ours), len(theirs)),
    )
    pieces = file.metadata["tokenizer.ggml.tokens"]
    here, there = (pieces[ids[at]] if at < len(ids) else "" for ids in (ours, theirs))
    name = printable(_splitter(file))
    return [
        printable(
            f"its tokenizer ({name}) splits some text otherwise than llama.cpp: {here!r} for {there!r}"
        )
    ]
