"""From a corpus's name to its documents, and from documents to calibration samples."""

import hashlib
import json
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qsweep.base.errors import ConfigError
from qsweep.base.plugins import locate_object
from qsweep.base.secrets import hidden_tree
from qsweep.text.calibration import CalibrationTokens
from qsweep.text.chats import Document, said
from qsweep.text.corpus import CorpusConfig

MOST_TOKENS = 2**26
"""As many tokens may be drawn for calibration: 256 times what the methods' papers draw."""
MOST_REPEATS = 1000
"""A text is not drawn from more often than this: whoever asks for it made a mistake."""
# Raised when the same configuration would now give another text.
_LOADER = 3
_LONG_KNOWN = (".jsonl", ".ndjson", ".json", ".parquet")


def load_documents(config: CorpusConfig) -> list[str]:
    """The documents of a corpus, in order, empty ones kept where the source has them.

    Raises:
        ConfigError: A file is missing, unreadable, or lacks the field; or there is no text at all.
        QsweepError: A dataset cannot be had.
    """
    return [said(document) for document in load_turns(config)]


def load_turns(config: CorpusConfig) -> list[Document]:
    """The same, of a conversation its messages. Raises as :func:`load_documents`."""
    from qsweep.text.files import lone_surrogates
    from qsweep.text.sources import from_datasets, from_embedded, from_files

    loaders: dict[str, Callable[[CorpusConfig], Sequence[Document]]] = {
        "python": _from_python, "chat": from_embedded, "file": from_files, "datasets": from_datasets,
        "pack": _from_pack,
    }  # fmt: skip
    load = loaders.get(config.source, _from_function)
    documents = _limited(load(config), config)
    if halves := sum(lone_surrogates(said(document)) for document in documents):
        documents = [clean(document) for document in documents]
        print(
            f"note: {config.name}: {halves} lone surrogates (half a character each) became U+FFFD",
            file=sys.stderr,
        )
    if not any(said(document).strip() for document in documents):
        raise ConfigError(f"{config.name}: no text in {config.path or config.dataset or 'it'}")
    return documents


def clean(document: Document) -> Document:
    """A document without lone surrogates, which no encoding has."""
    from qsweep.text.files import without_surrogates

    if isinstance(document, str):
        return without_surrogates(document)
    return [{key: without_surrogates(text) for key, text in turn.items()} for turn in document]


def corpus_identity(config: CorpusConfig) -> dict[str, Any]:
    """What identifies a corpus without reading it: changes whenever its text may have changed.

    Size and time stamp of files, the Python version of its own text, repository and revision of a
    dataset (one whose branch moves keeps the text that was loaded first). The name is no part of it,
    nor that the reference goes on from it.

    Raises:
        ConfigError: A file is missing.
    """
    from qsweep.text.files import kind_of
    from qsweep.text.sources import CONVERSATIONS_FILE, file_paths

    # It is written into the store; a token in an address is no part of what lies there.
    own = ("name", "new_tokens")  # what it is called, and what is made of it
    given = {k: v for k, v in asdict(config).items() if v not in (None, False) and k not in own}
    fields = {k: hidden_tree(v) for k, v in given.items()}
    fields["loader"] = _LOADER
    if config.source == "chat":
        fields["content"] = hashlib.sha256(CONVERSATIONS_FILE.read_bytes()).hexdigest()
    if config.source == "python":
        fields["python"] = [platform.python_version(), sys.base_prefix]
    if ":" in config.source:
        # Another version of the package may give another text.
        module = Path(locate_object(config.source, f"{config.name}: source").__code__.co_filename)
        fields["files"] = [[str(module), module.stat().st_size, module.stat().st_mtime_ns]]
    if config.source == "file":
        paths = file_paths(config)
        stats = [(path.absolute(), path.stat()) for path in paths]
        fields["files"] = [[str(path), stat.st_size, stat.st_mtime_ns] for path, stat in stats]
        # What older versions read as plain text is another text now.
        if anew := sorted(
            {kind_of(path) for path in paths if path.suffix not in _LONG_KNOWN} - {"text"}
        ):
            fields["read_as"] = anew
    if config.source == "datasets" and Path(str(config.dataset)).is_dir():
        files = sorted(p for p in Path(str(config.dataset)).rglob("*") if p.is_file())
        fields["files"] = [[str(p), p.stat().st_size, p.stat().st_mtime_ns] for p in files]
    return fields


def text_fingerprint(documents: Sequence[Document]) -> str:
    """A hash of the documents and of where one ends and the next begins: 32 hexadecimal digits."""
    digest = hashlib.sha256()
    for document in documents:
        text = document if isinstance(document, str) else json.dumps(document, sort_keys=True)
        encoded = text.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.hexdigest()[:32]


def calibration_samples(
    documents: Sequence[str],
    tokenizer: Any,
    num_samples: int,
    max_seq_len: int,
    seed: int,
    model_type: str = "",
) -> CalibrationTokens:
    """Windows at random places of the joined text, as in the GPTQ paper.

    Args:
        documents: Joined by a blank line and tokenized once.
        tokenizer: The model's own.
        num_samples: How many windows; they may overlap.
        max_seq_len: Tokens of each.
        seed: Determines the places.
        model_type: A Gemma's windows each begin with BOS, as when it is measured.

    Raises:
        ConfigError: The text has fewer tokens than one sample, or too few for so many.
    """
    import random

    from qsweep.text.windows import bos_ids, bos_rule, token_ids

    rule = bos_rule(tokenizer, model_type)
    start = bos_ids(tokenizer) if rule != "none" else []
    prefix, stream = (start, []) if rule == "window" else ([], start)
    ids = [*stream, *token_ids("\n\n".join(documents), tokenizer)]
    length = max_seq_len - len(prefix)
    if len(ids) < length:
        raise too_short(len(ids), length)
    if num_samples * length > MOST_REPEATS * len(ids):
        raise ConfigError(
            f"calibration.num_samples={num_samples}: the calibration text has {len(ids)} tokens, and "
            f"{num_samples} samples of {length} repeat it {num_samples * length // len(ids)} times; "
            f"{MOST_REPEATS} times are the most"
        )
    draw = random.Random(seed)  # noqa: S311 - not for cryptography
    starts = [draw.randrange(len(ids) - length + 1) for _ in range(num_samples)]
    return CalibrationTokens(
        [prefix + ids[start : start + length] for start in starts],
        distinct=covered_positions(starts, length),
    )


def too_short(tokens: int, length: int) -> ConfigError:
    """What is wrong with a text of fewer tokens than a sample has."""
    return ConfigError(
        f"the calibration text has {tokens} tokens, one sample takes {length}; give a longer "
        "text, or lower calibration.max_seq_len"
    )


def check_amount(num_samples: int, length: int) -> None:
    """Refuse more calibration than can be drawn and run. Raises ConfigError.

    ``length`` is a sample's, in tokens.
    """
    if num_samples * length > MOST_TOKENS:
        raise ConfigError(
            f"calibration.num_samples={num_samples}: samples of {length} tokens, "
            f"{num_samples * length} in all; {MOST_TOKENS // length} samples are the most"
        )


def covered_positions(starts: Sequence[int], length: int) -> int:
    """How many places windows of one length cover together, wherever they begin.

    >>> covered_positions([0, 2, 10], 4)
    10
    """
    count, end = 0, 0
    for start in sorted(starts):
        count += start + length - max(start, end)
        end = start + length
    return count


def _from_pack(config: CorpusConfig) -> list[str]:
    raise ConfigError(
        f"{config.name}: a reference pack holds its token ids alone, and no text of it; "
        "give model.pack=FILE, or choose the text with corpus="
    )


def _from_function(config: CorpusConfig) -> list[str]:
    documents = locate_object(config.source, f"{config.name}: source")()
    if isinstance(documents, str) or not all(isinstance(one, str) for one in documents):
        raise ConfigError(f"{config.name}: {config.source} must give texts, one for each document")
    return list(documents)


def _from_python(config: CorpusConfig) -> list[str]:
    from qsweep.base.schema import nearest
    from qsweep.models.tiny.text import documents

    splits = ("train", "calibration", "test")
    if config.split not in splits:
        raise ConfigError(
            f"{config.name}: no split {config.split!r}{nearest(config.split, splits)}"
        )
    kinds = ("docs", "code") if config.kind == "all" else (config.kind,)
    found = [text for kind in kinds for text in documents(kind, config.split)]  # type: ignore[arg-type]
    if not found:
        raise ConfigError(
            f"{config.name}: this Python installation carries neither pydoc's topics nor the "
            "standard library's source; give a text with corpus=file corpus.path=FILE"
        )
    return found


def _limited(documents: Sequence[Document], config: CorpusConfig) -> list[Document]:
    documents = list(documents[: config.max_documents])
    left = config.max_bytes
    if left is None:
        return documents
    kept: list[Document] = []
    for document in documents:
        encoded = said(document).encode("utf-8", "surrogatepass")
        # A character that is cut in two is left out, and what is cut is no conversation any more.
        kept.append(document if len(encoded) <= left else encoded[:left].decode(errors="ignore"))
        left -= len(encoded)
        if left <= 0:
            break
    return kept
