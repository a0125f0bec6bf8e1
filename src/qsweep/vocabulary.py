"""Whether a model has an embedding for every token that its tokenizer makes."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from qsweep.errors import ConfigError
from qsweep.files import read_regular
from qsweep.texts import Text


def require_embeddings(model: Path, rows: int, texts: Iterable[tuple[str, Text]]) -> None:
    """Refuse texts with tokens that the model's embedding has no row for.

    Tokens that were added to a tokenizer alone do no harm where no text holds them: Gemma 3's text
    models have one for images.

    Args:
        model: The model's directory.
        rows: Of its embedding.
        texts: Each corpus by its name.

    Raises:
        ConfigError: One line: the token, where it is met, what to do.
    """
    beyond = _tokens_beyond(model, rows)
    if not beyond:
        return
    way_out = "resize the embedding to the tokenizer, or take the tokenizer that the model had"
    for token, (number, added) in sorted(beyond.items(), key=lambda item: item[1]):
        if not added:
            raise ConfigError(
                f"{model}: the tokenizer's token {number} ({token!r}) lies beyond the embedding's "
                f"{rows} rows; {way_out}"
            )
    for name, text in texts:
        documents = text.documents()
        for token, (number, _) in beyond.items():
            if any(token in document for document in documents):
                raise ConfigError(
                    f"{name}: the text holds {token!r}, the tokenizer's token {number}, and "
                    f"{model} has an embedding of {rows} rows; {way_out}"
                )


def _tokens_beyond(model: Path, rows: int) -> dict[str, tuple[int, bool]]:
    # Token: its number, and whether it was added to the vocabulary.
    tokenizer = _mapping(_read(model / "tokenizer.json"))
    base, added = _vocabulary(tokenizer, model), _added(tokenizer, model)
    found = {token: (number, False) for token, number in base if number >= rows and token}
    return found | {token: (number, True) for token, number in added if number >= rows and token}


def _vocabulary(tokenizer: Mapping[str, Any], model: Path) -> Iterator[tuple[str, int]]:
    vocab = _mapping(tokenizer.get("model")).get("vocab") or _read(model / "vocab.json")
    if isinstance(vocab, Mapping):
        yield from ((t, n) for t, n in vocab.items() if isinstance(n, int))
    elif isinstance(vocab, list):  # a unigram model's pairs of token and score
        yield from ((str(e[0]), n) for n, e in enumerate(vocab) if isinstance(e, list) and e)


def _added(tokenizer: Mapping[str, Any], model: Path) -> Iterator[tuple[str, int]]:
    listed = tokenizer.get("added_tokens")
    for entry in listed if isinstance(listed, list) else ():
        entry = _mapping(entry)
        if isinstance(entry.get("id"), int):
            yield str(entry.get("content", "")), entry["id"]
    decoder = _mapping(_read(model / "tokenizer_config.json")).get("added_tokens_decoder")
    for number, entry in _mapping(decoder).items():
        if str(number).isdigit():
            yield str(_mapping(entry).get("content", "")), int(number)
    for token, number in _mapping(_read(model / "added_tokens.json")).items():
        if isinstance(number, int):
            yield str(token), number


def _read(file: Path) -> Any:
    # What cannot be read is told by whoever loads the tokenizer.
    try:
        return json.loads(read_regular(file))
    except (OSError, ValueError, RecursionError):
        return None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
