"""Text from this Python's own installation, from files of every kind, and calibration samples."""

import json
import os

import pyarrow
import pyarrow.parquet
import pytest

from qsweep.base.errors import ConfigError
from qsweep.base.store import Store
from qsweep.text.corpora import (
    calibration_samples,
    check_amount,
    corpus_identity,
    covered_positions,
    load_documents,
    text_fingerprint,
)
from qsweep.text.corpus import CorpusConfig
from qsweep.text.stored import stored_text

LINES = ["First document.", "", "Drittes, mit Ümläuten: 日本語"]
CHAT = [
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "Four."},
]


def file(path, **more):
    return CorpusConfig("mine", "file", path=str(path), **more)


# embedded


@pytest.mark.parametrize("kind", ["docs", "code", "all"])
@pytest.mark.parametrize("split", ["calibration", "test"])
def test_every_part_of_pythons_own_text_is_there(kind, split):
    documents = load_documents(CorpusConfig("p", "python", kind=kind, split=split))
    assert sum(map(len, documents)) > 50_000
    assert all(document.strip() for document in documents)


def test_all_is_prose_and_code():
    docs, code, both = (
        load_documents(CorpusConfig("p", "python", kind=kind)) for kind in ("docs", "code", "all")
    )
    assert both == docs + code


def test_an_unknown_part_names_the_nearest():
    with pytest.raises(ConfigError, match=r"no split 'tests'; did you mean 'test'"):
        load_documents(CorpusConfig("p", "python", split="tests"))


# files


def test_a_text_file_is_one_document(tmp_path):
    path = tmp_path / "book.txt"
    path.write_bytes(b"\xef\xbb\xbf" + "\n\n".join(LINES).encode())  # a byte order mark is no text
    assert load_documents(file(path)) == ["\n\n".join(LINES)]
    odd = tmp_path / "notes.rst"
    odd.write_text("any other name is plain text")
    assert load_documents(file(odd)) == ["any other name is plain text"]


def write_rows(path, rows):
    if path.suffix == ".parquet":
        table = pyarrow.Table.from_pylist(rows)
        pyarrow.parquet.write_table(table, path, row_group_size=2)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".json", ".parquet"])
def test_every_row_of_a_table_is_a_document_and_empty_ones_are_kept(tmp_path, suffix):
    path = tmp_path / f"rows{suffix}"
    write_rows(path, [{"id": n, "body": text} for n, text in enumerate(LINES)])
    assert load_documents(file(path, field="body")) == LINES
    assert load_documents(file(path, field="body", max_documents=1)) == LINES[:1]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_chat_messages_become_what_was_said(tmp_path, suffix):
    path = tmp_path / f"chat{suffix}"
    write_rows(path, [{"messages": CHAT}, {"messages": CHAT[:1]}])
    expected = ["What is 2 + 2?\n\nFour.", "What is 2 + 2?"]
    assert load_documents(file(path, field="messages")) == expected


def test_other_ways_to_write_a_chat(tmp_path):
    path = tmp_path / "chats.jsonl"
    parts = [{"type": "text", "text": "Look:"}, {"type": "image"}, "at this"]
    rows = [
        [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}],
        ["one turn", "another"],
        [{"role": "user", "content": parts}],
        # an assistant that only calls a tool says nothing
        [*CHAT[:1], {"role": "assistant", "content": None, "tool_calls": []}],
    ]
    write_rows(path, [{"chat": row} for row in rows])
    assert load_documents(file(path, field="chat")) == [
        "Hi\n\nHello",
        "one turn\n\nanother",
        "Look:\n\nat this",
        "What is 2 + 2?",
    ]


def test_plain_strings_in_json(tmp_path):
    path = tmp_path / "strings.json"
    path.write_text(json.dumps(LINES))
    assert load_documents(file(path)) == LINES
    path.write_text(json.dumps({"text": "a single object"}))
    assert load_documents(file(path)) == ["a single object"]


def test_folders_and_patterns_are_read_in_the_order_of_names(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.txt").write_text("b")
    (tmp_path / "a.md").write_text("a")
    (tmp_path / "sub" / "c.txt").write_text("c")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    (tmp_path / ".git").mkdir()
    for hidden in (".git/HEAD.txt", ".draft.md", "sub/.c.txt"):  # as a pattern leaves them out, too
        (tmp_path / hidden).write_text("hidden")
    assert load_documents(file(tmp_path)) == ["a", "b", "c"]
    assert load_documents(file(tmp_path / "*.txt")) == ["b"]
    assert load_documents(file(tmp_path / "**" / "*.txt")) == ["b", "c"]
    (tmp_path / "odd[1].txt").write_text("brackets")
    assert load_documents(file(tmp_path / "odd[1].txt")) == ["brackets"]


def test_limits_cut_documents_and_never_a_character(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_rows(path, [{"text": "aaaa"}, {"text": "日本語"}, {"text": "never"}])
    assert load_documents(file(path, max_bytes=4)) == ["aaaa"]
    assert load_documents(file(path, max_bytes=8)) == ["aaaa", "日"]
    assert load_documents(file(path, max_bytes=13)) == ["aaaa", "日本語"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.txt", None, "no such file"),
        ("*.txt", None, "no such file"),
        ("empty.txt", b"", "no text in "),
        ("blank.txt", b" \n\n\t\n", "no text in "),
        ("latin.txt", b"caf\xe9", "not UTF-8 text (byte 3)"),
        ("broken.jsonl", b'{"text": "a"}\n{"text": ', "broken.jsonl:2: not JSON"),
        ("broken.json", b'[{"text": "a"},\n', "broken.json:2: not JSON"),
        ("field.jsonl", b'{"body": "a", "txt": "b"}', "no field 'text'; did you mean 'txt'?"),
        ("number.jsonl", b'{"text": 3}', "field 'text' holds no text but int"),
        ("null.jsonl", b'{"text": null}', "field 'text' holds no text but NoneType"),
        ("list.jsonl", b"[1, 2]", "neither a text nor an object"),
        ("chat.jsonl", b'{"text": [{"role": "user"}]}', "a message without content"),
        ("cut.parquet", b"PAR1....", "not a whole parquet file"),
        ("folder/", None, "holds no .txt"),
    ],
)
def test_what_cannot_be_read_is_one_line_with_file_and_place(tmp_path, name, content, message):
    path = tmp_path / name
    if name.endswith("/"):
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_documents(file(path))
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_parquet_file_without_the_field_names_the_nearest(tmp_path):
    path = tmp_path / "rows.parquet"
    write_rows(path, [{"texts": "a", "id": 1}])
    with pytest.raises(ConfigError, match=r"no field 'text'; did you mean 'texts'\?"):
        load_documents(file(path))


@pytest.mark.parametrize("url", ["https://example.com/a.txt", "s3://bucket/*.jsonl", "file:///a"])
def test_a_url_is_no_file(url):
    with pytest.raises(ConfigError, match="is a URL; download it"):
        load_documents(CorpusConfig("c", "file", path=url))


def test_a_corpus_says_what_it_lacks():
    with pytest.raises(ConfigError, match="source=file needs a path"):
        CorpusConfig("c", "file")
    with pytest.raises(ConfigError, match="source=datasets needs a dataset"):
        CorpusConfig("c", "datasets")
    with pytest.raises(ConfigError, match="max_bytes=0"):
        CorpusConfig("c", "python", max_bytes=0)


# identity and the store


def test_the_fingerprint_knows_where_documents_end():
    assert text_fingerprint(["ab", "c"]) != text_fingerprint(["a", "bc"])
    assert text_fingerprint(["abc"]) != text_fingerprint(["abc", ""])
    assert text_fingerprint(["\ud800"]) == text_fingerprint(["\ud800"])  # half a character


def test_the_identity_follows_the_file_and_what_is_taken_of_it_but_not_the_name(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one")
    before = corpus_identity(file(path))
    assert corpus_identity(CorpusConfig("other", "file", path=str(path))) == before
    assert corpus_identity(file(path, max_bytes=2)) != before
    os.utime(path, ns=(1, 1))
    assert corpus_identity(file(path)) != before


def test_a_text_is_loaded_once_and_again_when_its_file_changed(tmp_path):
    store, path = Store(tmp_path / "store"), tmp_path / "a.txt"
    path.write_text("one \ud83d".encode("utf-8", "surrogatepass").decode("utf-8", "replace"))
    first = stored_text(file(path), store)
    assert first.documents() == [path.read_text()]
    stamp = (first.path / "documents.json").stat().st_mtime_ns
    again = stored_text(file(path), store)
    assert again == first
    assert (again.path / "documents.json").stat().st_mtime_ns == stamp
    path.write_text("two")
    changed = stored_text(file(path), store)
    assert changed.documents() == ["two"]
    assert changed.fingerprint != first.fingerprint
    # the same text from another file is the same text
    copy = tmp_path / "copy.txt"
    copy.write_text("two")
    assert stored_text(file(copy), store).fingerprint == changed.fingerprint


# calibration samples


@pytest.fixture(scope="module")
def tokenizer(pocket_dir):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(pocket_dir)


TEXT = [f"Sentence number {n} of a text that calibrates.\n" for n in range(200)]


def test_samples_are_pieces_of_the_joined_text(tokenizer):
    samples = calibration_samples(TEXT, tokenizer, 7, 50, seed=0).samples
    stream = tokenizer("\n\n".join(TEXT))["input_ids"]
    pieces = [stream[start : start + 50] for start in range(len(stream) - 49)]
    assert len(samples) == 7
    assert all(list(sample) in pieces for sample in samples)


def test_the_seed_alone_draws_the_places(tokenizer):
    first, again, other = (
        calibration_samples(TEXT, tokenizer, 5, 40, seed=seed).samples for seed in (0, 0, 1)
    )
    assert first == again != other
    # more samples go on where fewer stop
    assert calibration_samples(TEXT, tokenizer, 3, 40, seed=0).samples == first[:3]


def test_a_text_of_exactly_one_sample_and_one_of_less(tokenizer):
    count = len(tokenizer("\n\n".join(TEXT))["input_ids"])
    samples = calibration_samples(TEXT, tokenizer, 2, count, seed=0).samples
    assert samples[0] == samples[1]
    with pytest.raises(ConfigError, match=f"has {count} tokens, one sample takes {count + 1}"):
        calibration_samples(TEXT, tokenizer, 2, count + 1, seed=0)


def test_a_gemmas_samples_begin_with_bos(tokenizer):
    samples = calibration_samples(TEXT, tokenizer, 4, 50, seed=0, model_type="gemma2").samples
    assert all(sample[0] == tokenizer.bos_token_id and len(sample) == 50 for sample in samples)


# Files as people have them.


def test_json_lines_end_at_line_feeds_alone(tmp_path):
    texts = ["a\u2028b", "c\u2029d", "e\x85f", "g\x0bh\x0ci\x1cj", "k"]
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    path.write_bytes("\r\n".join(lines).encode())
    assert load_documents(file(path)) == texts


@pytest.mark.parametrize("name", ["rows.JSONL", "rows.json", "rows.Json", "rows.ndJSON"])
def test_json_lines_by_other_names(tmp_path, name):
    path = tmp_path / name
    write_rows(path, [{"text": text} for text in LINES])
    assert load_documents(file(path)) == LINES


def test_a_lone_surrogate_becomes_the_replacement_character_and_is_told(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    path.write_text(r'{"text": "half \ud83d of one, and a whole \ud83d\ude00"}')
    expected = ["half \ufffd of one, and a whole \U0001f600"]
    assert load_documents(file(path)) == expected
    assert capsys.readouterr().err.count("1 lone surrogates") == 1
    assert stored_text(file(path), Store(tmp_path / "store")).documents() == expected


@pytest.mark.parametrize("name", ["t.csv", "t.CSV", "t.tsv"])
def test_a_column_of_a_table(tmp_path, name):
    import csv

    path = tmp_path / name
    with path.open("w", newline="", encoding="utf-8-sig") as out:
        mark = "\t" if name.endswith("tsv") else ","
        writer = csv.writer(out, delimiter=mark)
        writer.writerows([["id", "body"], *enumerate([*LINES, 'two\nlines, "quoted"'])])
    assert load_documents(file(path, field="body")) == [*LINES, 'two\nlines, "quoted"']
    with pytest.raises(ConfigError, match=r"no column 'bodi'; did you mean 'body'"):
        load_documents(file(path, field="bodi"))
    assert corpus_identity(file(path, field="body"))["read_as"] == ["table"]


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_compressed_text(tmp_path, suffix):
    import bz2
    import gzip
    import lzma

    plain = "".join(json.dumps({"text": text}) + "\n" for text in LINES).encode()
    packed = {
        ".gz": gzip.compress,
        ".bz2": bz2.compress,
        ".xz": lzma.compress,
        ".zst": lambda data: pyarrow.compress(data, "zstd", asbytes=True),
    }[suffix](plain)
    path = tmp_path / f"rows.jsonl{suffix}"
    path.write_bytes(packed)
    assert load_documents(file(path)) == LINES
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(ConfigError, match=r"rows\.jsonl"):
        load_documents(file(path))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
def test_a_byte_order_mark_tells_the_encoding(tmp_path, encoding):
    path = tmp_path / "a.txt"
    path.write_bytes("Ümläute\nund 日本語".encode(encoding))
    assert load_documents(file(path)) == ["Ümläute\nund 日本語"]
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(json.dumps({"text": "日本\u2028語"}, ensure_ascii=False).encode(encoding))
    assert load_documents(file(rows)) == ["日本\u2028語"]


def test_binary_files_and_pipes_are_refused_at_once(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("abc".encode("utf-16-le"))
    with pytest.raises(ConfigError, match="holds NUL bytes"):
        load_documents(file(path))
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    for given in (pipe, "/dev/zero"):
        with pytest.raises(ConfigError, match="is a (pipe|device), not a regular file"):
            load_documents(file(given))
        with pytest.raises(ConfigError, match="not a regular file"):
            corpus_identity(file(given))


def test_long_known_files_keep_their_identity(tmp_path):
    for name in ("a.txt", "a.jsonl", "a.json", "a.md", "a.rst"):
        (tmp_path / name).write_text("{}")
        assert "read_as" not in corpus_identity(file(tmp_path / name))


def test_odd_json_is_one_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    for content in ('{"text": ' + "9" * 5000 + "}", "[" * 100_000, '{"text": "a"} {"text": "b"}'):
        path.write_text(content + "\n")
        with pytest.raises(ConfigError, match=r"rows\.jsonl:1: (not JSON|nested too deeply)"):
            load_documents(file(path))


# Tokens without an embedding.


def test_a_text_with_a_token_beyond_the_embedding_is_refused_while_planning(tmp_path, pocket_dir):
    import shutil

    from qsweep.text.vocabulary import require_embeddings

    model = tmp_path / "model"
    shutil.copytree(pocket_dir, model)
    content = json.loads((model / "tokenizer.json").read_text())
    extra = {**content["added_tokens"][0], "id": 4096, "content": "<new>"}
    content["added_tokens"].append(extra)
    (model / "tokenizer.json").write_text(json.dumps(content))
    store, path = Store(tmp_path / "store"), tmp_path / "a.txt"
    path.write_text("nothing of it")
    require_embeddings(model, 4096, [("mine", stored_text(file(path), store))])
    path.write_text("a <new> word, now")
    with pytest.raises(
        ConfigError, match=r"mine: the text holds '<new>', .* token 4096 in .*tokenizer.json"
    ):
        require_embeddings(model, 4096, [("mine", stored_text(file(path), store))])
    with pytest.raises(ConfigError, match=r"lies beyond the embedding's 4000 rows"):
        require_embeddings(model, 4000, [])
    require_embeddings(pocket_dir, 4096, [])


@pytest.mark.parametrize(
    ("starts", "length"),
    [([0], 5), ([0, 0, 0], 5), ([0, 2, 1], 5), ([9, 0], 3), ([3, 0, 50, 51, 4], 7)],
)
def test_windows_cover_what_lies_in_any_of_them(starts, length):
    assert covered_positions(starts, length) == len({s + i for s in starts for i in range(length)})


def test_samples_tell_how_much_of_the_text_they_hold(tokenizer):
    text = ["word " * 300]
    few = calibration_samples(text, tokenizer, 4, 16, 0)
    assert 16 <= few.distinct <= 64
    many = calibration_samples(text, tokenizer, 400, 16, 0)
    assert many.distinct <= len(tokenizer(text[0])["input_ids"]) < 400 * 16 / 2


def test_no_text_is_drawn_from_without_end(tokenizer):
    with pytest.raises(ConfigError, match=r"num_samples=100000000.*repeat it"):
        calibration_samples(["word " * 300], tokenizer, 100_000_000, 16, 0)
    with pytest.raises(ConfigError, match=r"num_samples=100000000.*samples are the most"):
        check_amount(100_000_000, 512)
    check_amount(128, 2048)
