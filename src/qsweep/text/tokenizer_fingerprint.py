"""What tells two tokenizers apart: the pieces and their ids, the merges, where a text begins.

Of a transformers tokenizer, or of whatever another format keeps of one.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qsweep.text.tokenizer_files import joined_merges

_SPECIAL = ("bos", "eos", "unk", "pad")
_VOCABULARIES = (
    *("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model"),
    "tekken.json",
)
TOKENIZER_FILES = (
    *_VOCABULARIES,
    *("merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("generation_config.json", "chat_template.jinja", "chat_template.json"),
)
"""What a tokenizer is made of, and what is said of how texts begin, end and are framed."""


@dataclass(frozen=True)
class TokenizerFingerprint:
    """A tokenizer in a few hashes.

    Attributes:
        pieces: How many pieces it has, added tokens included.
        vocabulary: SHA-256 of all pieces with their ids.
        merges: SHA-256 of the merges in their order; None where it has none, or nobody can tell.
        special: Ids of ``bos``, ``eos``, ``unk`` and ``pad``, those that it has.
    """

    pieces: int
    vocabulary: str
    merges: str | None = None
    special: Mapping[str, int] | None = None

    def difference(self, other: "TokenizerFingerprint") -> str | None:
        """In what another tokenizer would give other ids than this one; None if in nothing.

        What ends a text, or fills it up, is not among that: libraries set it as they like.
        """
        if self.pieces != other.pieces:
            return f"{other.pieces} pieces instead of {self.pieces}"
        if self.vocabulary != other.vocabulary:
            return f"{self.pieces} pieces as wanted, but not the same ones under the same ids"
        if None not in (self.merges, other.merges) and self.merges != other.merges:
            return "the same pieces, but other merges"
        bos, theirs = ((one.special or {}).get("bos") for one in (self, other))
        if bos != theirs:
            return f"BOS {'none' if theirs is None else theirs} instead of {bos}"
        return None


def tokenizer_fingerprint(tokenizer: Any, first: int | None = None) -> TokenizerFingerprint:
    """The fingerprint of a transformers tokenizer, or of the first pieces that it has, by id."""
    ids = {name: getattr(tokenizer, f"{name}_token_id", None) for name in _SPECIAL}
    pieces = tokenizer.get_vocab()
    kept = sorted(pieces, key=lambda piece: pieces[piece])[:first]
    return fingerprint_of({piece: pieces[piece] for piece in kept}, _merges(tokenizer), ids)


def fingerprint_of(
    pieces: Mapping[str, int],
    merges: Iterable[str] | None,
    special: Mapping[str, int | None],
) -> TokenizerFingerprint:
    """The fingerprint of a tokenizer's parts.

    Args:
        pieces: Id of each piece, added tokens included.
        merges: Pairs of pieces with a space between them, in their order.
        special: Ids by ``bos``, ``eos``, ``unk`` and ``pad``.
    """
    by_id = sorted((number, piece) for piece, number in pieces.items())
    return TokenizerFingerprint(
        pieces=len(by_id),
        vocabulary=_hash(f"{number}\t{piece}" for number, piece in by_id),
        merges=None if merges is None else _hash(merges),
        special={name: int(n) for name, n in special.items() if n is not None},
    )


def has_tokenizer(path: Path) -> bool:
    """Whether a directory holds files that a tokenizer is made of."""
    return any((path / name).is_file() for name in _VOCABULARIES)


def chat_template_hash(tokenizer: Any) -> str | None:
    """SHA-256 of a tokenizer's chat template or templates; None if it has none."""
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        return None
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    return _hash([text])


def _merges(tokenizer: Any) -> tuple[str, ...] | None:
    # Only the library's own JSON has them.
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    return joined_merges(json.loads(backend.to_str())["model"].get("merges"))


def _hash(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()
