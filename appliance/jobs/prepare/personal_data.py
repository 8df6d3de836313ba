"""Find and replace personal data and secrets by patterns that are checked, not only matched.

Card numbers must pass the Luhn test (ISO/IEC 7812-1), account numbers mod 97 (ISO 13616), social
security numbers the rules of their issuer, addresses of the internet the parser of the standard
library. What fails its check stays: a version number is no phone number. No network, no model.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable

Check = Callable[[str], bool]


def redact(text: str) -> tuple[str, Counter[str]]:
    """Return the text with each find replaced by `<KIND>`, and the number of finds by kind."""
    counts: Counter[str] = Counter()
    for kind, pattern, check in _RULES:

        def replace(match: re.Match[str], kind: str = kind, check: Check = check) -> str:
            if not check(match.group()):
                return match.group()
            counts[kind] += 1
            return f"<{kind}>"

        text = pattern.sub(replace, text)
    return text, counts


def _always(_: str) -> bool:
    return True


def is_card(text: str) -> bool:
    """13 to 19 digits of a known network that pass the Luhn test."""
    digits = [int(c) for c in text if c.isdigit()]
    if not 13 <= len(digits) <= 19 or digits[0] not in {2, 3, 4, 5, 6} or len(set(digits)) == 1:
        return False
    doubled = (2 * d - 9 if d > 4 else 2 * d for d in digits[-2::-2])
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def is_iban(text: str) -> bool:
    """Country, check digits and account that are 1 modulo 97."""
    packed = text.replace(" ", "").upper()
    if not 15 <= len(packed) <= 34:
        return False
    moved = packed[4:] + packed[:4]
    return int("".join(str(int(c, 36)) for c in moved)) % 97 == 1


def is_social_security_number(text: str) -> bool:
    """Area, group and serial that the issuer gives out."""
    area, group, serial = re.split(r"[- ]", text)
    return area not in {"000", "666"} and area < "900" and group != "00" and serial != "0000"


def is_address(text: str) -> bool:
    """An IPv4 or IPv6 address of one machine: not loopback, not unspecified, not a group."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_unspecified or address.is_multicast)


def is_phone(text: str) -> bool:
    """7 to 15 digits (E.164) with a country code, or grouped as phone numbers are."""
    digits = sum(c.isdigit() for c in text)
    return 10 <= digits <= 15 if text.lstrip().startswith("+") else digits == 10


# Longer and surer forms first: what one has replaced, the next no longer sees.
_RULES: tuple[tuple[str, re.Pattern[str], Check], ...] = (
    (
        "PRIVATE_KEY",
        re.compile(
            r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----", re.DOTALL
        ),
        _always,
    ),
    (
        "API_KEY",
        re.compile(
            r"\b(?:AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{36}|xox[abprs]-[A-Za-z0-9-]{10,}"
            r"|sk-[A-Za-z0-9_-]{20,}|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,})"
        ),
        _always,
    ),
    (
        "EMAIL",
        re.compile(r"\b[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}\b"),
        _always,
    ),
    ("IBAN", re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"), is_iban),
    ("CARD", re.compile(r"(?<![\d.])\d(?:[ -]?\d){12,18}(?!\.?\d)"), is_card),
    ("SSN", re.compile(r"(?<![\d-])\d{3}-\d{2}-\d{4}(?![\d-])"), is_social_security_number),
    ("IP_ADDRESS", re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?!\.?\d)"), is_address),
    (
        "IP_ADDRESS",
        re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{1,4}:){2,7}(?::?[0-9A-Fa-f]{1,4}){1,6}(?![\w:])"),
        is_address,
    ),
    (
        "PHONE",
        re.compile(
            r"(?<![\w.+-])(?:\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]?\d{2,4}){2,4}"
            r"|\(\d{3}\) ?\d{3}-\d{4}|\d{3}-\d{3}-\d{4})(?![\w-])"
        ),
        is_phone,
    ),
)
