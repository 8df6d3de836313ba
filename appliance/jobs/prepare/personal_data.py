"""Find and replace personal data and secrets by patterns that are checked, not only matched.

Card numbers must pass the Luhn test (ISO/IEC 7812-1), account numbers the length of their country
and mod 97 (ISO 13616), social security numbers the rules of their issuer, addresses of the internet
the parser of the standard library. What fails its check stays: a version number is no phone number.
No network, no model.

Patterns run in RE2, in time that grows with the text alone. It looks at no character twice, so what
must not stand beside a find is part of its pattern, and group 1 is the find.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import re2

MOST_CANDIDATES = 50_000
"""Looked at in one text: one with more is a list of people or machines, nothing to learn from."""

Check = Callable[[str], int]
"""How many characters of a candidate are to be replaced; 0: it is none."""


@dataclass
class Redaction:
    """A text without personal data.

    Attributes:
        text: each find is `<KIND>`. Of no use when `too_many`.
        found: by kind.
        too_many: there were more candidates than are looked at.
    """

    text: str
    found: Counter[str] = field(default_factory=Counter)
    too_many: bool = False


def redact(text: str) -> Redaction:
    """Replace what is found in a text."""
    result = Redaction(text)
    data = text.encode()
    left = MOST_CANDIDATES
    for rule in _RULES:
        data, seen, found = rule.replace(data, left)
        left -= seen
        if found:
            result.found[rule.kind] += found
        if not left:
            result.too_many = True
            return result
    result.text = data.decode()
    return result


@dataclass(frozen=True)
class _Rule:
    """One kind's form. `check` gets what group 1 of the pattern matched."""

    kind: str
    pattern: re2._Regexp
    check: Check = len

    def replace(self, data: bytes, most: int) -> tuple[bytes, int, int]:
        """The text with its finds replaced, how many candidates there were, and how many finds."""
        mark = f"<{self.kind}>".encode()
        pieces: list[bytes] = []
        start = at = seen = found = 0
        while seen < most and (match := self.pattern.search(data, at)) is not None:
            seen += 1
            first, at = match.span(1)
            candidate = data[first:at].decode()
            if taken := self.check(candidate):
                at = first + len(candidate[:taken].encode())
                pieces += (data[start:first], mark)
                start = at
                found += 1
        return b"".join([*pieces, data[start:]]), seen, found


def is_card(text: str) -> bool:
    """13 to 19 digits of a known network that pass the Luhn test."""
    digits = [int(c) for c in text if c.isdigit()]
    if not 13 <= len(digits) <= 19 or digits[0] not in {2, 3, 4, 5, 6} or len(set(digits)) == 1:
        return False
    doubled = (2 * d - 9 if d > 4 else 2 * d for d in digits[-2::-2])
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


# Of the registry of ISO 13616 (SWIFT, release 98).
_IBAN_LENGTHS = {
    country: int(length)
    for length, countries in {
        "15": "NO",
        "16": "BE",
        "18": "DK FK FI FO GL NL SD",
        "19": "MK SI",
        "20": "AT BA EE KZ LT LU MN XK",
        "21": "CH HR LI LV",
        "22": "BG BH CR DE GB GE IE ME RS VA",
        "23": "AE GI IL IQ OM SO TL",
        "24": "AD CZ ES MD PK RO SA SE SK TN VG",
        "25": "LY PT ST",
        "26": "IS TR",
        "27": "BI DJ FR GR IT MC MR SM",
        "28": "AL AZ BY CY DO GT HU LB NI PL SV",
        "29": "BR EG PS QA UA",
        "30": "JO KW MU YE",
        "31": "MT SC",
        "33": "RU",
    }.items()
    for country in countries.split()
} | {"LC": 32}


def iban_in(text: str) -> int:
    """How much of a candidate is an account number: of its country's length, and 1 modulo 97."""
    length = _IBAN_LENGTHS.get(text[:2].upper(), 0)
    packed = ""
    for place, character in enumerate(text):
        if character not in " -":
            packed += character
            if len(packed) == length:
                moved = packed[4:] + packed[:4]
                return place + 1 if int("".join(str(int(c, 36)) for c in moved)) % 97 == 1 else 0
    return 0


def is_social_security_number(text: str) -> bool:
    """Area, group and serial that the issuer gives out."""
    area, group, serial = text.replace(" ", "-").split("-")
    return area not in {"000", "666"} and area < "900" and group != "00" and serial != "0000"


def is_address(text: str) -> bool:
    """An IPv4 or IPv6 address of one machine: not loopback, not unspecified, not a group.

    Four single digits are taken for a version.
    """
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if address.version == 4 and len(text) == len("1.2.3.4"):
        return False
    return not (address.is_loopback or address.is_unspecified or address.is_multicast)


def is_phone(text: str) -> bool:
    """10 to 15 digits with a country code (E.164), 9 to 12 that begin with 0, or 10 otherwise."""
    digits = sum(c.isdigit() for c in text)
    if text.startswith("+"):
        return 10 <= digits <= 15
    return 9 <= digits <= 12 if text.startswith("0") else digits == 10


_NOBODY = {"git", "hg", "svn"}
"""Before the @ of a repository's address."""
_PICTURES = {"png", "jpg", "jpeg", "gif", "webp", "svg", "avif"}
"""Behind the last dot of a picture's name, as in `icon@2x.png`."""


def is_mailbox(text: str) -> bool:
    """A mailbox of somebody, of the lengths of RFC 5321."""
    local, _, domain = text.rpartition("@")
    labels = domain.split(".")
    return (
        len(local) <= 64
        and len(domain) <= 255
        and all(0 < len(label) <= 63 for label in labels)
        and local.lower() not in _NOBODY
        and labels[-1].lower() not in _PICTURES
    )


def is_key(text: str) -> bool:
    """An API key and no name that begins like one (`sk-learn-and-others`)."""
    if not text.startswith("sk-"):
        return True
    longest = max(text.replace("_", "-").split("-"), key=len)
    return len(longest) >= 16 and any(c.isdigit() for c in longest)


def _if(check: Callable[[str], bool]) -> Check:
    return lambda text: len(text) if check(text) else 0


_PEM = r"PRIVATE KEY(?: BLOCK)?-----"
# Whose keys begin so: this product, Amazon, GitHub, GitLab, Google, Stripe, Hugging Face, Slack,
# npm, PyPI, age, OpenAI and those who copied it, and JSON Web Tokens (RFC 7519).
_KEYS = (
    r"sla_[a-z]{3,4}_[0-9a-f]{16}_[a-z2-7]{52}_[0-9a-f]{8}",
    r"A[KS]IA[0-9A-Z]{16}",
    r"gh[pousr]_[A-Za-z0-9]{36,}",
    r"github_pat_[A-Za-z0-9_]{22,}",
    r"glpat-[A-Za-z0-9_-]{20,}",
    r"AIza[A-Za-z0-9_-]{35}",
    r"[sr]k_(?:live|test)_[A-Za-z0-9]{16,}",
    r"hf_[A-Za-z0-9]{30,}",
    r"xox[abeprs]-[A-Za-z0-9-]{10,}",
    r"npm_[A-Za-z0-9]{36}",
    r"pypi-[A-Za-z0-9_-]{50,}",
    r"AGE-SECRET-KEY-1[0-9A-Z]{58}",
    r"sk-[A-Za-z0-9_-]{20,}",
    r"eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}",
)
_NO_NUMBER_BEFORE, _NO_NUMBER_BEHIND = r"(?:^|[^\d.])", r"(?:[^\d.]|\.[^\d]|\.?$)"

# Longer and surer forms first: what one has replaced, the next no longer sees.
_RULES = (
    _Rule(
        "PRIVATE_KEY",
        re2.compile(
            rf"(-----BEGIN [A-Z0-9 ]{{0,40}}{_PEM}(?:[^-]|-[^-])*-----END [A-Z0-9 ]{{0,40}}{_PEM})"
        ),
    ),
    # One whose end is cut off.
    _Rule(
        "PRIVATE_KEY",
        re2.compile(rf"(-----BEGIN [A-Z0-9 ]{{0,40}}{_PEM}(?:\s+[A-Za-z0-9+/=]{{16,}})+)"),
    ),
    _Rule("API_KEY", re2.compile(rf"\b({'|'.join(_KEYS)})"), _if(is_key)),
    _Rule(
        "EMAIL",
        re2.compile(r"([\pL\pM\pN._%+'-]+@(?:[\pL\pM\pN-]+\.)+\pL[\pL\pM]+)"),
        _if(is_mailbox),
    ),
    _Rule(
        "IBAN",
        re2.compile(r"(?i)\b([A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]{4}){2,7}(?:[ -]?[A-Z0-9]{1,3})?)\b"),
        iban_in,
    ),
    _Rule(
        "CARD",
        re2.compile(rf"{_NO_NUMBER_BEFORE}(\d(?:[ -]?\d){{12,18}}){_NO_NUMBER_BEHIND}"),
        _if(is_card),
    ),
    _Rule(
        "SSN",
        re2.compile(r"(?:^|[^\d-])(\d{3}-\d{2}-\d{4})(?:[^\d-]|$)"),
        _if(is_social_security_number),
    ),
    _Rule(
        "IP_ADDRESS",
        re2.compile(rf"{_NO_NUMBER_BEFORE}((?:\d{{1,3}}\.){{3}}\d{{1,3}}){_NO_NUMBER_BEHIND}"),
        _if(is_address),
    ),
    _Rule(
        "IP_ADDRESS",
        re2.compile(
            r"(?:^|[^\w:.])((?i:fe80:|(?:[0-9a-f]{1,4}:){2,7})(?i::?[0-9a-f]{1,4}){1,6})"
            r"(?:[^\w:]|$)"
        ),
        _if(is_address),
    ),
    _Rule(
        "PHONE",
        re2.compile(
            r"(?:^|[^\w.+-])(\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]?\d{2,4}){2,4}"
            r"|\(\d{3}\) ?\d{3}-\d{4}|\d{3}-\d{3}-\d{4}"
            r"|0\d{1,4}[ /-]\d{2,8}(?:[ -]\d{2,8}){0,4})(?:[^\w-]|$)"
        ),
        _if(is_phone),
    ),
)
