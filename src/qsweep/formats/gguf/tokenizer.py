"""A GGUF file's tokenizer against a model's: same pieces by the same ids, same merges, same ends.

llama.cpp keeps a tokenizer among the metadata: ``tokenizer.ggml.tokens``, ``merges``, ids of special
tokens, and no more of how text is split than a name (``tokenizer.ggml.pre``). The model's is read from
``tokenizer.json``, or from SentencePiece's ``tokenizer.model``; nothing in either is executed.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from qsweep.base.errors import ConfigError
from qsweep.formats.gguf.header import printable
from qsweep.formats.gguf.reader import GGUFFile
from qsweep.models.config import read_config, read_json, text_config
from qsweep.text.tokenizer_files import chat_template

_UNUSED = 5  # LLAMA_TOKEN_TYPE_UNUSED
# What converters fill the vocabulary up with.
_FILLER = re.compile(r"^(\[PAD\d+\]|<dummy\d+>|<pad_?\d+>|<unused\d+>|\[unused\d+\])$")
_SPACE = "▁"
# So many differences of one kind are told; the rest is counted.
_TOLD = 3


@dataclass(frozen=True)
class ModelTokenizer:
    """A model's tokenizer: ``pieces`` by id, ``merges`` as pairs (None: it has none).

    ``bos`` and ``eos`` are ids that end a text on either side by any of the model's files, and
    ``adds_bos`` whether it begins every text with BOS; None where no file says so.
    """

    pieces: Mapping[int, str]
    merges: Sequence[tuple[str, str]] | None = None
    bos: frozenset[int] = frozenset()
    eos: frozenset[int] = frozenset()
    adds_bos: bool | None = None
    chat_template: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


def tokenizer_differences(file: GGUFFile, source: Path) -> list[str]:
    """In what a file's tokenizer is not that of the model in the directory ``source``, a line each.

    Raises:
        ConfigError: the directory's tokenizer cannot be read.
    """
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens or not isinstance(tokens[0], str):
        return ["the file has no tokenizer"]
    model = read_tokenizer(source)
    return [
        printable(line, 300)
        for line in (
            *_pieces(tokens, _types(file, len(tokens)), model.pieces),
            *_merges(file.metadata.get("tokenizer.ggml.merges"), model.merges),
            *_ends(file, model),
        )
    ]


def chat_template_difference(file: GGUFFile, source: Path) -> str | None:
    """Whether a file's chat template is another one than the model's, in one line; none is rendered."""
    found = file.metadata.get("tokenizer.chat_template")
    own = read_tokenizer(source).chat_template
    if not isinstance(found, str) or own is None or found.strip() == own.strip():
        return None
    return "the file has another chat template than the model"


def read_tokenizer(source: Path) -> ModelTokenizer:
    """The tokenizer of the model in a directory. Raises ConfigError where it cannot be read."""
    settings = _settings(source)
    if (source / "tokenizer.json").is_file():
        content = read_json(source / "tokenizer.json")
        try:
            pieces, merges = _of_json(content)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"{source / 'tokenizer.json'}: no tokenizer ({error!r})") from error
        adds_bos = _begins_with_special(content)
    elif (source / "tokenizer.model").is_file():
        pieces, merges, adds_bos = _of_sentencepiece(source), None, None
    else:
        raise ConfigError(f"{source}: no tokenizer.json or tokenizer.model to compare with")
    ids = {piece: number for number, piece in pieces.items()}
    stated = settings.get("add_bos_token")
    return ModelTokenizer(
        pieces,
        merges,
        bos=frozenset(_special("bos", settings, ids)),
        eos=frozenset(_special("eos", settings, ids)),
        adds_bos=stated if isinstance(stated, bool) else adds_bos,
        chat_template=chat_template(source, settings),
        settings=settings,
    )


def _settings(source: Path) -> dict[str, Any]:
    """What the model's files say of special tokens, all under the names that they have there."""
    found: dict[str, Any] = {}
    for name in ("tokenizer_config.json", "generation_config.json"):
        if (source / name).is_file() and isinstance(content := read_json(source / name), dict):
            found[name] = content
    config = read_config(source) if (source / "config.json").is_file() else {}
    tokenizer = found.get("tokenizer_config.json", {})
    return {**tokenizer, "_ids": [text_config(config), found.get("generation_config.json", {})]}


def _special(end: str, settings: Mapping[str, Any], ids: Mapping[str, int]) -> Iterator[int]:
    for place in settings["_ids"]:
        value = place.get(f"{end}_token_id")
        yield from (v for v in (value if isinstance(value, list) else [value]) if _whole(v))
    token = settings.get(f"{end}_token")
    token = token.get("content") if isinstance(token, Mapping) else token
    if isinstance(token, str) and token in ids:
        yield ids[token]


def _of_json(content: Mapping[str, Any]) -> tuple[dict[int, str], list[tuple[str, str]] | None]:
    """Pieces and merges of a ``tokenizer.json`` (the format of Hugging Face's ``tokenizers``)."""
    model = content["model"]
    vocab = model["vocab"]
    if isinstance(vocab, Mapping):
        pieces = {number: piece for piece, number in vocab.items()}
    else:
        pieces = {number: entry[0] for number, entry in enumerate(vocab)}
    pieces |= {token["id"]: token["content"] for token in content.get("added_tokens") or ()}
    merges = model.get("merges")
    if merges is None:
        return pieces, None
    pairs = [m.split(" ") if isinstance(m, str) else m for m in merges]
    return pieces, [(first, second) for first, second in pairs]


def _of_sentencepiece(source: Path) -> dict[int, str]:
    """Pieces of a ``tokenizer.model``, with the tokens that were added beside it."""
    from sentencepiece import SentencePieceProcessor

    file = source / "tokenizer.model"
    try:
        model = SentencePieceProcessor(model_file=str(file))
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"{file}: cannot be read by sentencepiece ({error})") from error
    pieces = {number: model.id_to_piece(number) for number in range(model.get_piece_size())}
    if (source / "added_tokens.json").is_file():
        added = read_json(source / "added_tokens.json")
        pieces |= {number: piece for piece, number in added.items()}
    return pieces


def _begins_with_special(content: Mapping[str, Any]) -> bool | None:
    """Whether a template puts a special token before every text; None where nothing is said."""
    processor = content.get("post_processor") or {}
    steps = processor.get("processors") or [processor]
    for step in steps:
        if step.get("type") == "TemplateProcessing" and step.get("single"):
            return "SpecialToken" in step["single"][0]
    return None


def _types(file: GGUFFile, count: int) -> list[int]:
    types = file.metadata.get("tokenizer.ggml.token_type")
    return types if isinstance(types, list) and len(types) == count else [1] * count


def _pieces(tokens: Sequence[str], types: Sequence[int], model: Mapping[int, str]) -> Iterator[str]:
    different = [
        (number, token, own)
        for number, token in enumerate(tokens)
        if (own := model.get(number)) is not None and not _same(token, own)
    ]
    for number, token, own in different[:_TOLD]:
        yield f"token {number} is {token!r} in the file and {own!r} in the model"
    if len(different) > _TOLD:
        yield f"{len(different) - _TOLD} more tokens are others"
    surplus = [
        number
        for number, token in enumerate(tokens)
        if number not in model and types[number] != _UNUSED and not _FILLER.match(token)
    ]
    if surplus:
        first = tokens[surplus[0]]
        yield f"the file has {len(surplus)} tokens more than the model, such as {first!r}"
    lacking = sorted(number for number in model if number >= len(tokens))
    if lacking:
        first = model[lacking[0]]
        yield f"the file lacks {len(lacking)} tokens of the model, such as {first!r}"


def _same(token: str, own: str) -> bool:
    """Whether two pieces are the same, however each side spells spaces and bytes."""
    return token == own or bool(_spellings(token) & _spellings(own))


def _spellings(piece: str) -> set[bytes]:
    found = {piece.replace(_SPACE, " ").encode("utf-8", "surrogatepass")}
    alphabet = _byte_alphabet()
    if all(c in alphabet for c in piece):
        found.add(bytes(alphabet[c] for c in piece))
    return found


@lru_cache(maxsize=1)
def _byte_alphabet() -> Mapping[str, int]:
    """The letters that stand for bytes in byte-level vocabularies (GPT-2's ``bytes_to_unicode``)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1)]
    plain += range(ord("®"), ord("ÿ") + 1)
    others = [byte for byte in range(256) if byte not in set(plain)]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}


def _merges(found: Any, own: Sequence[tuple[str, str]] | None) -> Iterator[str]:
    # A vocabulary in SentencePiece's manner has scores instead, in the order of its merges.
    if not isinstance(found, list) or own is None:
        return
    # The converter spells a space inside of a piece as byte-level vocabularies do.
    wanted = [" ".join(part.replace(" ", "Ġ") for part in pair) for pair in own]
    if found == wanted:
        return
    if len(found) != len(wanted):
        yield f"the file has {len(found)} merges and the model {len(wanted)}"
    for number, (one, other) in enumerate(zip(found, wanted, strict=False)):
        if one != other:
            yield f"merge {number} is {one!r} in the file and {other!r} in the model"
            return


def _ends(file: GGUFFile, model: ModelTokenizer) -> Iterator[str]:
    for end, own in (("bos", model.bos), ("eos", model.eos)):
        found = file.metadata.get(f"tokenizer.ggml.{end}_token_id")
        if _whole(found) and own and found not in own:
            ids = " or ".join(map(str, sorted(own)))
            yield f"{end.upper()} is token {found} in the file and {ids} in the model"
    found = file.metadata.get("tokenizer.ggml.add_bos_token")
    if isinstance(found, bool) and model.adds_bos is not None and found != model.adds_bos:
        does, other = ("puts", "does not") if found else ("does not put", "does")
        yield f"the file {does} BOS before every text, and the model {other}"


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
