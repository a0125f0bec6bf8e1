"""What is secret in a text that is written or shown: passwords and tokens, wherever URLs have them.

Everything that leaves the process (messages, commands, records, what a tracker gets) goes through
:func:`hidden` or :func:`hidden_value`; nothing else knows what a secret looks like.
"""

import functools
import io
import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote

HIDDEN = "***"

# Here the name before a password is a name. Elsewhere it may itself be the token, as in
# https://TOKEN@HOST and https://TOKEN:x-oauth-basic@HOST.
_NAMED = {
    "sqlite", "postgresql", "postgres", "mysql", "mariadb", "mssql", "oracle", "ssh", "sftp", "ftp",
}  # fmt: skip
# In a URL's query every parameter of such a name, in any spelling: X-Amz-Signature, sslpassword. But
# of sslkey, a file, and of the one that names a view of MLflow's UI.
_IN_QUERY = re.compile(
    r"passw|passphrase|pwd|secret|token|jwt|signature|credential|authorization|odbcconnect"
    r"|(?<!ssl)(?<!viewstateshare)key(id)?$|^(pass|pw|sig|auth)$"
)
# In other texts, as of a keyword DSN (host=db password=...), only what can be nothing else:
# eos_token=... is no secret.
_IN_TEXT = re.compile(
    r"(password|passwd|pwd|passphrase|secret)$"
    r"|^(pass|token|(access|auth|bearer|security|session)token|(api|access|secret|account|private"
    r"|sharedaccess)key)$"
)
# An environment's variable: HF_TOKEN=...
_VARIABLE = re.compile(r"(.*_)?(TOKEN|SECRET|KEY|PASSWORD|PASSWD|PASS|PWD|CREDENTIALS?)$")
# Tokens that say themselves what they are: of the hub, GitHub, GitLab, Databricks, AWS.
_TOKEN = re.compile(
    r"(?<!\w)(?:hf_|gh[opsu]_|github_pat_|glpat-|dapi|AKIA|ASIA)(?=\w*\d)[A-Za-z0-9_-]{16,}"
)

# What only names a secret: ${oc.env:NAME}. A default behind a comma would be one.
_NAME_ONLY = r"(?:\$\{[^{},]*(?:\{[^{},]*\}[^{},]*)*\})+"


def hidden(text: str) -> str:
    """A running text, such as a message, with ``***`` for every secret in it.

    >>> hidden("cannot reach https://me:s3cret@host/x?token=abc: refused")
    'cannot reach https://***@host/x?token=***: refused'
    """
    return _replace(text, _RUNNING)


def hidden_value(value: str) -> str:
    """The same for a value that stands alone, in which blanks may be part of a password.

    >>> hidden_value("postgresql://me:my pass@host/db?sslmode=require&sslpassword=x")
    'postgresql://me:***@host/db?sslmode=require&sslpassword=***'
    """
    return _replace(value, _ALONE)


def hidden_tree(value: Any) -> Any:
    """Mappings and lists with every text in them as by :func:`hidden_value`."""
    if isinstance(value, str):
        return hidden_value(value)
    if isinstance(value, Mapping):
        return {
            key: HIDDEN if isinstance(item, str) and _is_secret(str(key)) else hidden_tree(item)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [hidden_tree(item) for item in value]
    return value


def is_hidden(text: str) -> bool:
    """Whether something was hidden in it, so that it cannot be used as it stands."""
    return HIDDEN in text


def scrubbed(text: str, *values: str) -> str:
    """A message about values such as URLs, which libraries quote in whole, in parts, or decoded."""
    for secret in _secrets_in(values):
        text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", HIDDEN, text)
    return hidden(text)


@functools.lru_cache
def _secrets_in(values: tuple[str, ...]) -> tuple[str, ...]:
    """Every secret in the values, as it stands and decoded, the longest first."""
    found: list[str] = []
    for value in values:
        _replace(value, _ALONE, found)
    forms = {form for secret in found for form in (secret, unquote(secret))} - {HIDDEN, ""}
    return tuple(sorted(forms, key=len, reverse=True))


def without_login(url: str) -> str:
    """A URL as a link for a browser, which asks for the login itself."""
    return re.sub(r"://[^\s/?#]*@", "://", hidden_value(url))


class RedactingStream(io.TextIOWrapper):
    """A text stream, such as a process's standard output, that shows no password to anybody.

    What qsweep says is without secrets already. Tracebacks, warnings, libraries' own words and
    Hydra's prints of a configuration are not.
    """

    def write(self, text: str) -> int:
        """Write a text with ``***`` for every secret in it."""
        super().write(hidden(text))
        return len(text)


class _Patterns:
    """Where secrets are: ``char`` matches what a URL consists of."""

    def __init__(self, char: str):
        # Hydra escapes colons in what it hands on, and some write JSON with escaped slashes.
        scheme = r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)(?P<mark>\\?:\\?/\\?/)"
        rest = r"(?=['\")\]}>,:.]*(?:\s|&|$))"
        # Up to the last @ before the path: an unescaped one belongs to the password.
        self.login = re.compile(rf"{scheme}(?P<login>(?:(?![/?#]){char})*)@")
        # A password with an unescaped / ? or #, which database drivers take as it is.
        self.broken = re.compile(
            rf"{scheme}(?P<login>[^\s:/?#@\[]*:(?P<password>{char}*[/?#]{char}*))@"
        )
        # A URL as people mistype it, ME:PASSWORD@HOST or http:/ME:PASSWORD@HOST.
        self.bare = re.compile(
            r"(?P<before>(?<![\w/:.@{$\\-])(?:[A-Za-z][\w+.-]*\\?:\\?/(?!\\?/)|//)?)"
            rf"(?P<login>[^\s/:=@,;|'\"<>()\[\]{{}}$]+:(?!\s)(?:(?![/@]){char})+)@(?=[A-Za-z\[]|\d+\.)"
        )
        self.parameter = re.compile(
            rf"(?P<before>[?&](?P<name>[^\s=&?]+)=)(?P<value>{_NAME_ONLY}|(?:(?!&){char})+?){rest}"
        )
        self.keyword = re.compile(
            r"(?P<before>(?<![\w?&-])-{0,2}(?P<name>[A-Za-z][\w-]*)\s*\\?=\s*)"
            rf"(?P<value>{_NAME_ONLY}|"
            r"'(?:[^'\\]|\\.)+'|\"(?:[^\"\\]|\\.)+\"|\{[^}]+\}"
            r"|[^\s;'\"]+?(?=['\")\]}>,:.]*(?:\s|;|$)))"
        )


_RUNNING, _ALONE = _Patterns(r"\S"), _Patterns(r"[^\n]")


def _replace(text: str, patterns: _Patterns, found: list[str] | None = None) -> str:
    found = [] if found is None else found
    if "@" in text:
        text = patterns.login.sub(lambda m: _login(m, found), text)
        text = patterns.broken.sub(lambda m: _broken_login(m, found), text)
        text = patterns.bare.sub(lambda m: _bare_login(m, found), text)
    if "=" in text:
        text = patterns.parameter.sub(_named(_in_query, found), text)
        text = patterns.keyword.sub(_named(_is_secret, found), text)
    found += _TOKEN.findall(text)
    return _TOKEN.sub(HIDDEN, text)


def _login(match: re.Match[str], found: list[str]) -> str:
    scheme, login = match["scheme"], match["login"]
    user, _, password = login.partition(":")
    if not login or (_has_names(scheme) and not password) or _is_reference(password or user):
        return match[0]
    found += [login, password or user]
    shown = f"{user}:{HIDDEN}" if _has_names(scheme) else HIDDEN
    return f"{scheme}{match['mark']}{shown}@"


def _broken_login(match: re.Match[str], found: list[str]) -> str:
    is_port = re.match(r"\d*[/?#]", match["password"]) is not None
    if is_port and not _has_names(match["scheme"]):
        return match[0]  # http://HOST:PORT/PATH@VERSION
    return _login(match, found)


def _bare_login(match: re.Match[str], found: list[str]) -> str:
    password = match["login"].partition(":")[2]
    if _is_reference(password):
        return match[0]
    found += [match["login"], password]
    return f"{match['before']}{HIDDEN}@"


def _is_reference(text: str) -> bool:
    return re.fullmatch(_NAME_ONLY, text) is not None


def _has_names(scheme: str) -> bool:
    return scheme.lower().partition("+")[0] in _NAMED


def _named(is_secret: Callable[[str], bool], found: list[str]) -> Callable[[re.Match[str]], str]:
    def replace(match: re.Match[str]) -> str:
        if not is_secret(match["name"]) or _is_reference(match["value"]):
            return match[0]
        found.append(match["value"])
        return f"{match['before']}{HIDDEN}"

    return replace


def _in_query(name: str) -> bool:
    return _IN_QUERY.search(_plain(name)) is not None


def _is_secret(name: str) -> bool:
    return _IN_TEXT.search(_plain(name)) is not None or _VARIABLE.match(name) is not None


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", unquote(name).lower())
