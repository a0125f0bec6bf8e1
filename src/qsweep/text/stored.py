"""Texts in the store: a corpus is loaded once, kept with its hash, and read by every trial."""

import json
from dataclasses import dataclass
from pathlib import Path

from qsweep.base.files import read_json
from qsweep.base.store import Entry, Store
from qsweep.text.chats import Document, said
from qsweep.text.corpora import (
    clean,
    corpus_identity,
    load_documents,
    load_turns,
    text_fingerprint,
)
from qsweep.text.corpus import CorpusConfig

FILE = "documents.json"
"""Of an entry of the store, with the documents of a text in order."""


@dataclass(frozen=True)
class Text:
    """A corpus as it was loaded: its documents on disk, a hash of them, how many are conversations."""

    path: Path
    fingerprint: str
    conversations: int = 0

    def documents(self) -> list[str]:
        """The documents, in order."""
        return [said(document) for document in self.turns()]

    def turns(self) -> list[Document]:
        """The same, of conversations the messages, if it was loaded with them."""
        return [clean(document) for document in read_json(self.path / FILE)]  # kept so, once


def stored_text(config: CorpusConfig, store: Store, *, turns: bool = False) -> Text:
    """Load a corpus, or find it as it was loaded before.

    With ``turns`` conversations stay lists of messages. Raises whatever
    :func:`qsweep.text.corpora.load_documents` raises.
    """

    def load(out: Path) -> dict:
        documents = load_turns(config) if turns else load_documents(config)
        (out / FILE).write_text(json.dumps(documents), encoding="utf-8")
        found = {"fingerprint": text_fingerprint(documents)}
        chats = sum(not isinstance(document, str) for document in documents)
        return found | {"conversations": chats} if turns else found

    entry: Entry
    identity = corpus_identity(config) | ({"turns": True} if turns else {})
    entry, _ = store.build("texts", identity, load)
    return Text(entry.path, entry.content["fingerprint"], entry.content.get("conversations", 0))
