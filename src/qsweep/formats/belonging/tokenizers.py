"""Two tokenizers: the same pieces under the same ids, the same merges, BOS, EOS and chat template."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from qsweep.base.errors import ConfigError
from qsweep.base.files import state_of
from qsweep.formats.belonging.difference import Difference
from qsweep.models.config import read_config, read_json, text_config
from qsweep.text.tokenizer_files import chat_template, joined_merges

_FILES = (
    *("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "merges.txt", "vocab.txt"),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "config.json"),
    *("chat_template.jinja", "chat_template.json", "tekken.json"),
)


@dataclass(frozen=True)
class Vocabulary:
    """What of a tokenizer decides which ids a text becomes, and what a model is told by them.

    Attributes:
        pieces: Ids by piece, added tokens included.
        merges: Each two pieces with a space between them, in order; None where there are none or
            nobody can tell.
        bos: The id that a text begins with.
        eos: Ids that end one.
        chat_template: As it is written; None if there is none.
    """

    pieces: Mapping[str, int] = field(repr=False)
    merges: tuple[str, ...] | None = field(repr=False, default=None)
    bos: int | None = None
    eos: frozenset[int] = frozenset()
    chat_template: str | None = None


def compare_tokenizers(own: Path, base: Path) -> list[Difference]:
    """In what the tokenizer beside an artifact's weights is not the model's; nothing if it has none."""
    pair = read_vocabulary(own), read_vocabulary(base)
    if pair[0] is None or pair[1] is None:
        return []
    return compare_vocabularies(pair[0], pair[1])


def compare_vocabularies(own: Vocabulary, base: Vocabulary) -> list[Difference]:
    """In what one vocabulary is not the other; a difference of chat templates is only a note."""
    found = []
    if (line := _pieces(own.pieces, base.pieces)) is not None or (
        line := _merges(own.merges, base.merges)
    ) is not None:
        found.append(Difference(f"tokenizer: {line}"))
    if None not in (own.bos, base.bos) and own.bos != base.bos:
        found.append(Difference(f"BOS {own.bos} instead of {base.bos}"))
    if own.eos and base.eos and own.eos != base.eos:
        # What ends an answer is often added to; what ends a text is one of a model's traits.
        lists = [", ".join(map(str, sorted(one))) for one in (own.eos, base.eos)]
        line = f"EOS {lists[0]} instead of {lists[1]}"
        found.append(Difference(line, refuses=not own.eos & base.eos))
    if None not in (own.chat_template, base.chat_template):
        if (own.chat_template or "").strip() != (base.chat_template or "").strip():
            digest = hashlib.sha256((own.chat_template or "").encode()).hexdigest()[:8]
            found.append(Difference(f"another chat template (sha256 {digest})", refuses=False))
    elif base.chat_template is not None:
        found.append(Difference("no chat template, and the model has one", refuses=False))
    return found


def read_vocabulary(path: Path) -> Vocabulary | None:
    """The vocabulary in a directory; None where it has no tokenizer, or nobody can read it."""
    return _read_vocabulary(path, state_of(path, _FILES))


@lru_cache(maxsize=8)
def _read_vocabulary(path: Path, _state: Any) -> Vocabulary | None:
    try:
        found = _of_json(path) if (path / "tokenizer.json").is_file() else _of_library(path)
        if found is None:
            return None
        pieces, merges = found
        settings = _json(path / "tokenizer_config.json")
        named = {**_json(path / "special_tokens_map.json"), **settings}
        config = text_config(read_config(path))
    except (ConfigError, AttributeError, KeyError, TypeError, ValueError):
        return None
    bos = _ids(config.get("bos_token_id")) or _ids(pieces.get(_text(named.get("bos_token"))))
    eos = _ids(config.get("eos_token_id")) or _ids(pieces.get(_text(named.get("eos_token"))))
    return Vocabulary(
        pieces, merges, min(bos, default=None), frozenset(eos), chat_template(path, settings)
    )


def _of_json(path: Path) -> tuple[dict[str, int], tuple[str, ...] | None]:
    # The format: https://huggingface.co/docs/tokenizers, as tokenizers' own to_str writes it.
    content = read_json(path / "tokenizer.json")
    model = content["model"]
    vocabulary = model.get("vocab") or {}
    if isinstance(vocabulary, list):  # a unigram model's: pairs of a piece and its score
        vocabulary = {piece: number for number, (piece, _) in enumerate(vocabulary)}
    pieces = {str(piece): int(number) for piece, number in vocabulary.items()}
    for token in content.get("added_tokens") or ():
        pieces[token["content"]] = int(token["id"])
    return pieces, joined_merges(model.get("merges"))


def _of_library(path: Path) -> tuple[dict[str, int], tuple[str, ...] | None] | None:
    if not any((path / name).is_file() for name in _FILES if not name.startswith(("config", "ch"))):
        return None
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        pieces = {str(piece): int(number) for piece, number in tokenizer.get_vocab().items()}
        backend = getattr(tokenizer, "backend_tokenizer", None)
        model = json.loads(backend.to_str())["model"] if backend is not None else {}
        return pieces, joined_merges(model.get("merges"))
    except Exception:  # of the tokenizers library, whose errors have no kind
        return None


def _pieces(own: Mapping[str, int], base: Mapping[str, int]) -> str | None:
    if own == base:
        return None
    theirs = {number: piece for piece, number in base.items()}
    ours = {number: piece for piece, number in own.items()}
    other = sorted(n for n in ours.keys() | theirs.keys() if ours.get(n) != theirs.get(n))
    if not other:
        return "pieces that share an id"
    first = other[0]
    words = [_quoted(where.get(first)) for where in (ours, theirs)]
    more = f", and {len(other) - 1} other ids differ" if len(other) > 1 else ""
    count = f"{len(own)} pieces instead of {len(base)}; " if len(own) != len(base) else ""
    return f"{count}id {first} is {words[0]} instead of {words[1]}{more}"


def _quoted(piece: str | None) -> str:
    return "nothing" if piece is None else ascii(piece if len(piece) <= 24 else f"{piece[:23]}…")


def _merges(own: tuple[str, ...] | None, base: tuple[str, ...] | None) -> str | None:
    if own is None or base is None or own == base:
        return None
    pairs = zip(own, base, strict=False)
    at = next((n for n, (one, other) in enumerate(pairs) if one != other), min(len(own), len(base)))
    words = [_quoted(where[at] if at < len(where) else None) for where in (own, base)]
    return f"the same pieces, but merge {at} is {words[0]} instead of {words[1]}"


def _json(file: Path) -> dict[str, Any]:
    content = read_json(file) if file.is_file() else {}
    return content if isinstance(content, dict) else {}


def _text(token: Any) -> str:
    return str(token.get("content") if isinstance(token, dict) else token)


def _ids(value: Any) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [number for number in values if type(number) is int]
