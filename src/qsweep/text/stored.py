"""Texts in the store: a corpus is loaded once, kept with its hash, and read by every trial."""

import json
from dataclasses import dataclass
from pathlib import Path

from qsweep.base.files import read_json
from qsweep.base.store import Entry, Store
from qsweep.text.corpora import corpus_identity, load_documents, text_fingerprint
from qsweep.text.corpus import CorpusConfig
from qsweep.text.files import without_surrogates

FILE = "documents.json"
"""Of an entry of the store, with the documents of a text in order."""


@dataclass(frozen=True)
class Text:
    """A corpus as it was loaded: its documents on disk, and a hash of them."""

    path: Path
    fingerprint: str

    def documents(self) -> list[str]:
        """The documents, in order."""
        documents = read_json(self.path / FILE)
        return [without_surrogates(document) for document in documents]  # kept so, once


def stored_text(config: CorpusConfig, store: Store) -> Text:
    """Load a corpus, or find it as it was loaded before.

    Raises whatever :func:`qsweep.text.corpora.load_documents` raises.
    """

    def load(out: Path) -> dict:
        documents = load_documents(config)
        (out / FILE).write_text(json.dumps(documents), encoding="utf-8")
        return {"fingerprint": text_fingerprint(documents)}

    entry: Entry
    entry, _ = store.build("texts", corpus_identity(config), load)
    return Text(entry.path, entry.content["fingerprint"])
