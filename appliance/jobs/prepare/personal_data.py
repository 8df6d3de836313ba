"""Find and replace personal data and secrets by patterns that are checked, not only matched.

Card numbers must pass the Luhn test (ISO/IEC 7812-1), account numbers the length of their country
and mod 97 (ISO 13616), social security numbers the rules of their issuer, addresses of the internet
the parser of the standard library. What fails its check stays: a version number is no phone number.
No network, no model.

Patterns run in RE2, in time that grows with the text alone. It has no look-around, so what must not
stand beside a find is part of its pattern, and group 1 is the find. A search goes on where the find
before it ended, and looks again at what was looked at behind that; so each pattern either has an
end, or takes as a candidate whatever it has run through.
"""

from __future__ import annotations

import ipaddress
import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import re2

from appliance.jobs.prepare.scripts import SEGMENTED, UNSEGMENTED

MAX_CANDIDATES = 50_000
"""In one text: one with as many is a list of people or machines, nothing to learn from."""
TOO_MUCH, TOO_SLOW = "too_much_personal_data", "too_slow"
_EVERY = 256
"""Candidates between two looks at the clock."""

Check = Callable[[str], tuple[int, int] | None]
"""First and end of what is to be replaced in a candidate, in characters; None: it is none."""


@dataclass
class Redaction:
    """A text without personal data.

    Attributes:
        text: each find is `<KIND>`. Of no use when there is a `fault`.
        found: by kind.
        fault: why it ended early, `TOO_MUCH` or `TOO_SLOW`; empty when it did not.
    """

    text: str
    found: Counter[str] = field(default_factory=Counter)
    fault: str = ""


def redact(text: str, until: float = math.inf) -> Redaction:
    """Replace what is found in a text, as long as `time.thread_time()` is before `until`."""
    result = Redaction(text)
    data = text.encode()
    left = MAX_CANDIDATES
    for rule in _RULES:
        data, seen, found = rule.replace(data, left, until)
        left -= seen
        if found:
            result.found[rule.kind] += found
        if left <= 0 or time.thread_time() > until:
            result.fault = TOO_MUCH if left <= 0 else TOO_SLOW
            return result
    result.text = data.decode()
    return result


def _whole(text: str) -> tuple[int, int]:
    return 0, len(text)


@dataclass(frozen=True)
class _Rule:
    """One kind's form.

    Attributes:
        kind: of the finds.
        pattern: group 1 is a candidate.
        check: says what of a candidate is a find.
        groups: whether a find may begin at any group of a candidate that is none as it stands.
            Only for patterns that have an end.
    """

    kind: str
    pattern: Any
    check: Check = _whole
    groups: bool = False

    def replace(self, data: bytes, most: int, until: float) -> tuple[bytes, int, int]:
        """The text with its finds replaced, how many candidates there were, and how many finds.

        Ends early after `most` candidates, or when the time is over.
        """
        mark = f"<{self.kind}>".encode()
        pieces: list[bytes] = []
        start = at = seen = found = 0
        while seen < most and (match := self.pattern.search(data, at)) is not None:
            seen += 1
            first, at = match.span(1)
            candidate = data[first:at].decode()
            if span := self.check(candidate):
                begin = first + len(candidate[: span[0]].encode())
                at = first + len(candidate[: span[1]].encode())
                pieces += (data[start:begin], mark)
                start = at
                found += 1
            elif self.groups:
                at = first + _first_group(candidate)
            if seen % _EVERY == 0 and time.thread_time() > until:
                break
        return b"".join([*pieces, data[start:]]), seen, found


def _first_group(candidate: str) -> int:
    """Bytes before the first character that is no letter or digit, at least one."""
    place = next((i for i, c in enumerate(candidate) if i and not c.isalnum()), len(candidate))
    return len(candidate[:place].encode())


def is_card(text: str) -> bool:
    """13 to 19 digits of a known network that pass the Luhn test."""
    digits = [int(c) for c in text if c.isdigit()]
    if not 13 <= len(digits) <= 19 or digits[0] not in {2, 3, 4, 5, 6} or len(set(digits)) == 1:
        return False
    doubled = (2 * d - 9 if d > 4 else 2 * d for d in digits[-2::-2])
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def card_in(text: str) -> tuple[int, int] | None:
    """The card number a candidate is, or begins with when one more group stands behind it."""
    if is_card(text):
        return _whole(text)
    shorter = text[:-4]
    return _whole(shorter) if not text[-4:].isdigit() and is_card(shorter) else None


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


def iban_in(text: str) -> tuple[int, int] | None:
    """The account number a candidate begins with: of its country's length, and 1 modulo 97."""
    length = _IBAN_LENGTHS.get(text[:2].upper(), 0)
    packed = ""
    for place, character in enumerate(text):
        if not character.isalnum():
            continue
        packed += character
        if len(packed) == length:
            moved = packed[4:] + packed[:4]
            right = int("".join(str(int(c, 36)) for c in moved)) % 97 == 1
            alone = not text[place + 1 : place + 2].isalnum()
            return (0, place + 1) if right and alone else None
    return None


def is_social_security_number(text: str) -> bool:
    """Area, group and serial that the issuer gives out."""
    area, group, serial = text[:3], text[4:6], text[7:]
    return area not in {"000", "666"} and area < "900" and group != "00" and serial != "0000"


_PLACES = tuple(map(ipaddress.ip_network, ("2000::/3", "fc00::/7", "fe80::/10")))
"""Where the addresses of machines are (RFC 4291, RFC 4193): `dead::beef` is a name in a program."""


def is_address(text: str) -> bool:
    """An IPv4 or IPv6 address of one machine: not loopback, not unspecified, not a group.

    Four single digits are taken for a version.
    """
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if address.version == 6:
        return any(address in place for place in _PLACES) and any(c.isdigit() for c in text)
    single = len(text) == len("1.2.3.4")
    return not (single or address.is_loopback or address.is_unspecified or address.is_multicast)


_DATE = re2.compile(r"\d\d[^\d]\d\d[^\d]\d{4}(?:[^\d]|$)")


def phone_in(text: str) -> tuple[int, int] | None:
    """The phone number a candidate is, or ends with when it begins with a date."""
    date = _DATE.match(text)
    first = date.end() if date else 0
    return (first, len(text)) if is_phone(text[first:]) else None


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
MAX_LOCAL, MAX_GLUED = 64, 24


def mailbox_in(text: str) -> tuple[int, int] | None:
    """A mailbox of somebody, of the lengths of RFC 5321: of a longer beginning, its end."""
    local, _, domain = text.rpartition("@")
    labels = domain.split(".")
    if (
        len(domain) > 255
        or max(map(len, labels)) > 63
        or local.lower() in _NOBODY
        or labels[-1].lower() in _PICTURES
    ):
        return None
    return max(0, len(local) - MAX_LOCAL), len(text)


def glued_mailbox_in(text: str) -> tuple[int, int] | None:
    """A mailbox where words have no spaces between them, so that its beginning is a guess."""
    found = mailbox_in(text)
    return found and (max(0, text.rindex("@") - MAX_GLUED), found[1])


def is_key(text: str) -> bool:
    """An API key and no name that begins like one (`sk-learn-and-others`)."""
    if not text.startswith("sk-"):
        return True
    longest = max(text.replace("_", "-").split("-"), key=len)
    return len(longest) >= 16 and any(c.isdigit() for c in longest)


def is_web_token(text: str) -> bool:
    """A JSON Web Token: a head, claims and a signature (RFC 7519)."""
    parts = text.split(".")
    if len(parts) != 3:
        return False
    _, claims, signature = parts
    return claims.startswith("eyJ") and len(claims) >= 13 and len(signature) >= 10


def _if(check: Callable[[str], bool]) -> Check:
    return lambda text: _whole(text) if check(text) else None


_PEM = r"PRIVATE KEY(?: BLOCK)?-----"
# Also behind the escape of a line end, as in the strings of programs.
_WORD = r"(?:\b|\\[nrt])"
# Whose keys begin so: this product, Amazon, GitHub, GitLab, Google, Stripe, Hugging Face, Slack,
# npm, PyPI, age, OpenAI and those who copied it.
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
)
_NO_NUMBER_BEFORE, _NO_NUMBER_BEHIND = r"(?:^|[^\d.])", r"(?:[^\d.]|\.[^\d]|\.?$)"
# Letters of words that stand between spaces, and all: where words have none between them, the text
# around a mailbox would be taken for a part of it.
_SPACED = r"\p{Inherited}" + "".join(rf"\p{{{script}}}" for script in SEGMENTED)
_ALL = r"\pM\pL" + "".join(rf"\p{{{script}}}" for script in sorted(UNSEGMENTED))
# Between the groups of a number: blanks and hyphens, also those of typesetters.
_GAP = r"[ \-\x{00A0}\x{2007}\x{2009}\x{202F}\x{2010}\x{2011}\x{2012}]"
_HYPHEN = r"[-\x{2010}\x{2011}]"

# Longer and surer forms first: what one has replaced, the next no longer sees.
_RULES = (
    _Rule(
        "PRIVATE_KEY",
        re2.compile(
            rf"(-----BEGIN [A-Z0-9 ]{{0,40}}{_PEM}(?:[^-]|-[^-])*-----END [A-Z0-9 ]{{0,40}}{_PEM})"
        ),
    ),
    # One whose end is cut off, with the lines that may stand before the key (RFC 1421, RFC 9580).
    _Rule(
        "PRIVATE_KEY",
        re2.compile(
            rf"(-----BEGIN [A-Z0-9 ]{{0,40}}{_PEM}(?:\s+[A-Za-z-]+: [^\n]*)*"
            r"(?:(?:\s|\\[nr])+[A-Za-z0-9+/=]{16,})+)"
        ),
    ),
    _Rule(
        "API_KEY",
        re2.compile(rf"{_WORD}(eyJ[\w-]{{10,}}(?:\.[\w-]+){{0,2}})"),
        _if(is_web_token),
    ),
    _Rule("API_KEY", re2.compile(rf"{_WORD}({'|'.join(_KEYS)})"), _if(is_key)),
    _Rule(
        "EMAIL",
        re2.compile(rf"([{_SPACED}\pN._%+'-]+@(?:[{_SPACED}\pN-]+\.)+[{_SPACED}]{{2,}})"),
        mailbox_in,
    ),
    _Rule(
        "EMAIL",
        re2.compile(rf"([{_ALL}\pN._%+'-]+@(?:[{_ALL}\pN-]+\.)+[{_ALL}]{{2,}})"),
        glued_mailbox_in,
    ),
    _Rule(
        "IBAN",
        re2.compile(
            rf"\b([A-Za-z]{{2}}\d{{2}}(?:{_GAP}?[A-Za-z0-9]{{4}}){{2,7}}"
            rf"(?:{_GAP}?[A-Za-z0-9]{{1,3}})?)\b"
        ),
        iban_in,
        groups=True,
    ),
    _Rule(
        "CARD",
        re2.compile(
            rf"{_NO_NUMBER_BEFORE}([2-6]\d{{12,18}}"
            rf"|[2-6]\d{{3}}(?:{_GAP}\d{{4}}){{3}}(?:{_GAP}\d{{3}})?"
            rf"|3\d{{3}}{_GAP}\d{{6}}{_GAP}\d{{4,5}}){_NO_NUMBER_BEHIND}"
        ),
        card_in,
        groups=True,
    ),
    _Rule(
        "SSN",
        re2.compile(rf"(?:^|[^\d-])(\d{{3}}{_HYPHEN}\d{{2}}{_HYPHEN}\d{{4}})(?:[^\d-]|$)"),
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
            r"(?:^|[^\w:.])((?:[0-9A-Fa-f]{1,4}:){7}[0-9A-Fa-f]{1,4}"
            r"|(?:[0-9A-Fa-f]{1,4}:){1,6}(?::[0-9A-Fa-f]{1,4}){1,6})(?:[^\w:]|:[^\w:]|:?$)"
        ),
        _if(is_address),
    ),
    _Rule(
        "PHONE",
        re2.compile(
            rf"(?:^|[^\w.+-])(\+\d{{1,3}}(?:{_GAP}|\.)?(?:\(\d{{1,4}}\)(?:{_GAP}|\.)?)?\d{{1,4}}"
            rf"(?:(?:{_GAP}|\.)?\d{{2,4}}){{2,4}}"
            rf"|\(\d{{3}}\){_GAP}?\d{{3}}{_GAP}\d{{4}}|\d{{3}}-\d{{3}}-\d{{4}}"
            rf"|0\d{{1,4}}(?:{_GAP}|/)\d{{2,8}}(?:{_GAP}\d{{2,8}}){{0,4}})(?:[^\w-]|$)"
        ),
        phone_in,
    ),
)
