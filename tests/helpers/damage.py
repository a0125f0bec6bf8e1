"""Ways to damage a file."""

import os


def with_text_for_numbers(content):
    if isinstance(content, dict):
        return {name: with_text_for_numbers(value) for name, value in content.items()}
    if isinstance(content, list):
        return [with_text_for_numbers(value) for value in content]
    is_number = isinstance(content, (int, float)) and not isinstance(content, bool)
    return str(content) if is_number else content


def flip(file):
    """Change a byte, and set the time stamp back."""
    stat = file.stat()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


JUNK = {
    "list": b"[]", "mapping": b"{}", "text": b'"x"', "null": b"null", "number": b"3",
    "truncated": b'{"version": 2, "fil', "empty": b"", "not UTF-8": b"\xff\xfe{}",
    "deep": b"[" * 100_000, "NaN": b"NaN", "files": b'{"version": 1, "files": []}',
    "stamps": b'{"version": 1, "files": {"a": 1}, "identity": {}, "content": {}}',
    "names": b'{"version": 1, "files": {"\\u0000": {"size":1,"mtime_ns":1,"sha256":"x"}}}',
    "outside": b'{"version": 1, "files": {"/etc/passwd": {"size":1,"mtime_ns":1,"sha256":"x"}}}',
}  # fmt: skip
