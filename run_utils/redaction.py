"""Credentials become `***` in everything written or printed, since people share a run's files. No
torch."""

import base64
import os
import re
from pathlib import Path
from urllib.parse import unquote

SHORTEST = 6  # characters of a secret: a shorter one would match inside other words
_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]*://)([^\s\"'<>]+)", re.IGNORECASE)
# Matches an address without a scheme.
_USER = re.compile(r"(?<![\w/@:])[^\s/@:\"'<>]+:[^\s/@\"'<>]+@(?=[\w\[])")
_KEY_IN_PATH = re.compile(r"(?<=/)(?=[^/]*\d)(?=[^/]*[A-Za-z])[A-Za-z0-9]{20,}(?=/|$)")
_NAMED = re.compile(r"((?:key|token|secret|passw(?:or)?d|credentials?)=)(?!\d+\b)[^\s\"'&,;]{4,}", re.IGNORECASE)
_FLAG = re.compile(r"--?[\w-]*(?:key|token|secret|passw(?:or)?d|credentials?)", re.IGNORECASE)
_HEADER = re.compile(r"\b(bearer|basic)\s+(?=\S*[\d=_-])[\w.~+/=-]{6,}", re.IGNORECASE)
_KEY = re.compile(  # formats of well-known services
    r"\b(?:(?:sk|pk|rk|gsk|nvapi|pplx|xai|glpat|xox[abprs])[-_](?=[A-Za-z_-]*\d)[\w-]{16,}|(?:hf|gh[pousr]|r8)_[A-Za-z0-9]{20,}"
    r"|github_pat_\w{20,}|A(?:KIA|SIA)[A-Z0-9]{16}|AIza[\w-]{30,}|eyJ[\w-]{10,}\.[\w-]+(?:\.[\w-]+)?)"
)


def redact(value, secrets=()):
    """A text, or JSON's lists and objects of texts, with `***` in place of credentials: the user,
    query and fragment of an address, keys of well-known services, `token=...`, `secrets`, and the
    environment's secrets."""
    if isinstance(value, str):
        text = hide(value, (*secrets, *environment_secrets()))
        for pattern, replacement in ((_USER, "***@"), (_NAMED, r"\1***"), (_HEADER, r"\1 ***"), (_KEY, "***")):
            text = pattern.sub(replacement, text)
        return _ADDRESS.sub(lambda match: match[1] + _redact_address(match[2]), text)
    if isinstance(value, list | tuple):
        return [redact(element, secrets) for element in value]
    if isinstance(value, dict):
        return {key: redact(element, secrets) for key, element in value.items()}
    return value


def redact_command(words):
    """The words of a command line, each redacted. The X of `--api_key X` is redacted too."""
    return ["***" if _FLAG.fullmatch(flag) else redact(word) for flag, word in zip(["", *words], words, strict=False)]


def hide(value, secrets):
    """Replace only the secrets, in texts that must not change otherwise."""
    if isinstance(value, str):
        for secret in sorted(secrets, key=len, reverse=True):
            value = value.replace(secret, "***") if len(secret) >= SHORTEST else value
        return value
    if isinstance(value, list):
        return [hide(element, secrets) for element in value]
    if isinstance(value, dict):
        return {key: hide(element, secrets) for key, element in value.items()}
    return value


def environment_secrets():
    """The values of OPENAI_API_KEY, HF_TOKEN and similar variables."""
    return [value for name, value in os.environ.items() if re.search("(KEY|TOKEN|SECRET|PASSWORD)$", name)]


def address_secrets(url):
    """The credentials in an address: as written, decoded, and as in a client's header."""
    rest = url.split("://", 1)[-1]
    user, password = _user_of(rest).partition(":")[::2]
    query = re.split("[?#]", rest, maxsplit=1)[1:]
    pairs = re.split("[?#&]", query[0]) if query else []
    found = [user, password, *(pair.partition("=")[2] or pair for pair in pairs), *_KEY_IN_PATH.findall(rest)]
    header = base64.b64encode(f"{unquote(user)}:{unquote(password)}".encode()).decode() if user else ""
    return [secret for text in (*found, header) for secret in {text, unquote(text)} if secret]


def _user_of(rest):
    """`user:password` before the host, or "". A password may have a slash that should be %2F."""
    host = re.split("[/?#]", rest, maxsplit=1)[0]
    if "@" in host:
        return host.rpartition("@")[0]
    return rest.rpartition("@")[0] if "@" in rest and re.search(r":(?!\d*$)", host) else ""


def _redact_address(rest):
    user = _user_of(rest)
    rest = rest[len(user) :]
    place, separator, _ = re.match(r"([^?#]*)([?#]?)(.*)", rest, re.DOTALL).groups()
    return "***" * bool(user) + _KEY_IN_PATH.sub("***", place) + (separator + "***") * bool(separator)


def published_names(names):
    """The published_name of a name, or of each in a list, in one text."""
    return ", ".join(map(published_name, names if isinstance(names, list) else [str(names)]))


def published_name(name):
    """A model's or data set's hub id, or the last part of its path: cards name no folders of the
    training machine."""
    on_hub = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) and not name.endswith((".json", ".jsonl", ".parquet"))
    return name if on_hub and not Path(name).exists() else Path(redact(name)).name
