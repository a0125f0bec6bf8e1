"""Tokenizers told apart by what they make of a text."""

import json
import shutil

from transformers import AutoTokenizer

from qsweep.text.tokenizer_fingerprint import (
    chat_template_hash,
    fingerprint_of,
    has_tokenizer,
    tokenizer_fingerprint,
)


def test_one_is_as_it_is_wherever_it_lies_and_whatever_ends_a_text(pocket_dir, tmp_path):
    own = tokenizer_fingerprint(AutoTokenizer.from_pretrained(pocket_dir))
    assert own.pieces == 4096 and own.special["bos"] == 0
    copy = tmp_path / "copy"
    shutil.copytree(pocket_dir, copy)
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps({**settings, "pad_token": "a"}))
    other = tokenizer_fingerprint(AutoTokenizer.from_pretrained(copy))
    assert own.special != other.special and own.difference(other) is None
    assert has_tokenizer(copy) and not has_tokenizer(tmp_path)


def test_pieces_ids_merges_and_bos_each_tell():
    base = fingerprint_of({"a": 0, "b": 1, "ab": 2}, ["a b"], {"bos": 0, "eos": None})
    for pieces, merges, bos, words in (
        ({"a": 0, "b": 1}, ["a b"], 0, "2 pieces instead of 3"),
        ({"a": 1, "b": 0, "ab": 2}, ["a b"], 0, "not the same ones under the same ids"),
        ({"a": 0, "b": 1, "ab": 2}, ["b a"], 0, "other merges"),
        ({"a": 0, "b": 1, "ab": 2}, ["a b"], 1, "BOS 1 instead of 0"),
        ({"a": 0, "b": 1, "ab": 2}, ["a b"], None, "BOS none instead of 0"),
    ):
        found = base.difference(fingerprint_of(pieces, merges, {"bos": bos}))
        assert found is not None and words in found
    # where nobody can tell the merges, the rest counts
    assert base.difference(fingerprint_of({"b": 1, "a": 0, "ab": 2}, None, {"bos": 0})) is None


def test_templates_are_compared_by_what_they_say():
    class Some:
        chat_template = "{{ messages }}"

    class Several:
        chat_template = {"default": "a", "tools": "b"}  # noqa: RUF012 - as transformers has it

    assert chat_template_hash(Some()) != chat_template_hash(Several())
    assert chat_template_hash(object()) is None
