"""Whether a model has an embedding for every token that its tokenizer makes."""

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from qsweep.base.errors import ConfigError, QsweepError
from qsweep.base.files import read_regular, state_of
from qsweep.text.stored import Text

_FILES = ("tokenizer.json", "tokenizer_config.json", "added_tokens.json", "vocab.json")


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
    beyond = _tokens_beyond(model, rows, state_of(model, _FILES))
    for token, (number, file, added) in sorted(beyond.items(), key=lambda item: item[1][0]):
        if not added:
            raise ConfigError(f"{file}: its token {number} ({token!r}) {_lies_beyond(rows)}")
    for name, text in texts if beyond else ():
        documents = text.documents()
        for token, (number, file, _) in beyond.items():
            if any(token in document for document in documents):
                raise ConfigError(
                    f"{name}: the text holds {token!r}, which is token {number} in {file} and "
                    f"{_lies_beyond(rows)}"
                )


def require_rows(ids: Iterable[int], tokenizer: Any, rows: int) -> None:
    """The same of the tokens of a text: of some tokenizers no file lists the vocabulary.

    Raises:
        QsweepError: names the tokenizer's directory and the token.
    """
    highest = max(ids, default=0)
    if highest >= rows:
        token = tokenizer.convert_ids_to_tokens(highest)
        raise QsweepError(
            f"{tokenizer.name_or_path}: the tokenizer's token {highest} ({token!r}) "
            f"{_lies_beyond(rows)}"
        )


def _lies_beyond(rows: int) -> str:
    return (
        f"lies beyond the embedding's {rows} rows: resize the embedding to the tokenizer, or take "
        "the tokenizer that the model had"
    )


@lru_cache(maxsize=16)
def _tokens_beyond(model: Path, rows: int, _state: Any) -> dict[str, tuple[int, Path, bool]]:
    # Token: its number, where it is defined, and whether it was added to the vocabulary. A sweep asks
    # for every trial of a model, and the files may be large.
    file = model / "tokenizer.json"
    whole = _mapping(_read(file))
    found: dict[str, tuple[int, Path, bool]] = {}
    for place, entries, added in (
        *_added(whole, model),
        (file, _numbers(_mapping(whole.get("model")).get("vocab")), False),
        # Its vocabulary on its own, which counts where there is nothing else.
        *([] if whole else [(model / "vocab.json", _numbers(_read(model / "vocab.json")), False)]),
    ):
        found |= {t: (n, place, added) for t, n in entries if n >= rows and t}
    return found


def _numbers(vocabulary: Any) -> Iterator[tuple[str, int]]:
    if isinstance(vocabulary, Mapping):
        yield from ((str(t), n) for t, n in vocabulary.items() if type(n) is int)
    elif isinstance(vocabulary, list):  # a unigram model's pairs of token and score
        yield from ((str(e[0]), n) for n, e in enumerate(vocabulary) if isinstance(e, list) and e)


def _added(
    whole: Mapping[str, Any], model: Path
) -> Iterator[tuple[Path, Iterator[tuple[str, int]], bool]]:
    listed = whole.get("added_tokens")
    entries = [_mapping(entry) for entry in (listed if isinstance(listed, list) else ())]
    own = [(str(e.get("content", "")), e["id"]) for e in entries if type(e.get("id")) is int]
    yield model / "tokenizer.json", iter(own), True
    file = model / "tokenizer_config.json"
    decoder = _mapping(_mapping(_read(file)).get("added_tokens_decoder"))
    numbered = [(n, _mapping(entry)) for n, entry in decoder.items() if str(n).isdecimal()]
    yield file, iter([(str(e.get("content", "")), int(n)) for n, e in numbered]), True
    file = model / "added_tokens.json"
    yield file, _numbers(_mapping(_read(file))), True


def _read(file: Path) -> Any:
    # What cannot be read is told by whoever loads the tokenizer.
    try:
        return json.loads(read_regular(file))
    except (OSError, ValueError, RecursionError):
        return None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
