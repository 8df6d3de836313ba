"""Sentences with personal data that is known, and with what only looks like it."""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_SENTENCES = (
    "Please write to {} before Friday.",
    "The entry reads: {}",
    "{} was the answer, and nobody asked again.",
    'It says "{}" on the second page (see there).',
    "2024-05-17 08:15:00 row 12: {} (2 of 3)",
    "请联系 {}。",
    "name,value\nfirst,{}\nsecond,none\n",
)
_GLUED = (
    ("请联系zhang.wei@corp.example获取更多信息", "请联系<EMAIL>获取更多信息"),
    ("お問い合わせはinfo@kaisha.exampleまで", "お問い合わせは<EMAIL>まで"),
    ("ติดต่อsomchai@corp.exampleได้ทุกวัน", "ติดต่อ<EMAIL>ได้ทุกวัน"),
)
"""Where words have no spaces between them."""
_LETTERS, _CAPITALS, _DIGITS = string.ascii_lowercase, string.ascii_uppercase, string.digits


@dataclass(frozen=True)
class Labelled:
    """A text, the kind of what is in it (empty: nothing is), and the text without it."""

    text: str
    kind: str
    expected: str


def labelled(each: int = 40, seed: int = 0) -> Iterator[Labelled]:
    """`each` texts of every form, the same for the same seed."""
    draw = random.Random(seed)
    for kind, forms in _FORMS.items():
        for form in forms:
            for _ in range(each):
                sentence, data = draw.choice(_SENTENCES), form(draw)
                text = sentence.format(data)
                yield Labelled(text, kind, sentence.format(f"<{kind}>") if kind else text)
    for sentence, expected in _GLUED:
        yield Labelled(sentence, "EMAIL", expected)


Form = Callable[[random.Random], str]


def _some(alphabet: str, count: int) -> Form:
    return lambda draw: "".join(draw.choices(alphabet, k=count))


def _like(pattern: str) -> Form:
    """`#` is a digit, `~` one that is not zero, `*` and `^` are letters, all else itself."""
    places = {"#": _DIGITS, "~": _DIGITS[1:], "*": _LETTERS, "^": _CAPITALS}
    return lambda draw: "".join(draw.choice(places.get(c, c)) for c in pattern)


def _among(*texts: str) -> Form:
    return lambda draw: draw.choice(texts)


def _key(prefix: str, count: int, alphabet: str = _LETTERS + _CAPITALS + _DIGITS) -> Form:
    return lambda draw: prefix + "".join(draw.choices(alphabet, k=count - 1)) + "7"


def _luhn(digits: str) -> str:
    total = sum(
        sum(divmod(int(digit) * (2 - place % 2), 10)) for place, digit in enumerate(digits[::-1])
    )
    return digits + str(-total % 10)


def _card(gap: str) -> Form:
    def form(draw: random.Random) -> str:
        digits = draw.choice(("4", "51", "60")) + "".join(draw.choices(_DIGITS, k=14))
        digits = _luhn(digits[:15])
        return gap.join(digits[i : i + 4] for i in range(0, 16, 4))

    return form


def _iban(gap: str, *, small: bool = False) -> Form:
    def form(draw: random.Random) -> str:
        country, length = draw.choice((("DE", 22), ("FR", 27), ("AT", 20), ("NL", 18), ("CH", 21)))
        account = "".join(draw.choices(_DIGITS, k=length - 4))
        number = int("".join(str(int(c, 36)) for c in f"{account}{country}00"))
        whole = f"{country}{98 - number % 97:02}{account}"
        text = gap.join(whole[i : i + 4] for i in range(0, length, 4))
        return text.lower() if small else text

    return form


def _token(draw: random.Random) -> str:
    return (
        f"sla_{draw.choice(('svc', 'join'))}_{_some('0123456789abcdef', 16)(draw)}"
        f"_{_some(_LETTERS + '234567', 52)(draw)}_{_some('0123456789abcdef', 8)(draw)}"
    )


def _pem(draw: random.Random) -> str:
    kind = draw.choice(("", "RSA ", "EC ", "OPENSSH "))
    lines = "\n".join(_some(_LETTERS + _CAPITALS + _DIGITS + "+/", 64)(draw) for _ in range(4))
    return f"-----BEGIN {kind}PRIVATE KEY-----\n{lines}\n-----END {kind}PRIVATE KEY-----"


_FORMS: dict[str, tuple[Form, ...]] = {
    "EMAIL": (
        _like("****.******@*****.example"),
        _like("**+***##@mail.****.example.org"),
        _like("^^^^^_**@EXAMPLE.COM"),
        _among("jürgen.groß@büro.example", "名前@例え.jp", "zoë@müller.example"),
    ),
    "PHONE": (
        _like("+49 30 ~#####"),
        _like("+1-212-555-01##"),
        _like("+44 20 7946 0###"),
        _like("(212) 555-01##"),
        _like("212-555-01##"),
        _like("030 90182###"),
        _like("0151 2345####"),
        _like("01 23 45 6# ##"),
    ),
    "IBAN": (_iban(""), _iban(" "), _iban("-"), _iban("\u00a0"), _iban(" ", small=True)),
    "CARD": (
        _card(""),
        _card(" "),
        _card("-"),
        _card("\u202f"),
        _among("3782 822463 10005", "371449635398431"),
    ),
    "SSN": (_like("5~#-~#-~###"),),
    "IP_ADDRESS": (
        _like("10.1#.2#.3#"),
        _like("192.168.1.~#"),
        _like("2001:db8::8a2e:37#:733#"),
        _like("fe80::1ff:fe2#:4567:89#a"),
        _like("fd00::~"),
        _like("2a02:~#::5"),
    ),
    "API_KEY": (
        _token,
        _key("AKIA", 16, _CAPITALS + _DIGITS),
        _key("ghp_", 36),
        _key("github_pat_", 82),
        _key("glpat-", 20),
        _key("AIza", 35),
        _key("sk_live_", 24),
        _key("hf_", 34),
        _key("sk-proj-", 48),
        _key("xoxb-123456789012-", 24),
    ),
    "PRIVATE_KEY": (_pem,),
    "": (
        _among("icon@2x.png", "git@github.com:org/name.git", "@property", "a @ b", "left@right"),
        _like("package@#.#.#"),
        _like("version ~.#.#.#"),
        _like("10.0.19#4#.1"),
        _like("ISBN 978-3-16-14841#-0"),
        _like("sk-learn-****-******-****-20##"),
        _like("order 1##-#######-#######"),
        _like("20##-0~-1# 1#:#~:#~"),
        _like("0~-1#-20## 1#:#~:#~"),
        _like("1#/0~/20## 1#:#~"),
        _like("0~ 1# 20## 1#~~"),
        _among("dead::beef", "a::b", "face::add(1)", "12:30:45", "b2::c3"),
        _like("00:1a:2b:3c:4#:5e"),
        _like("std::******::****"),
        _some("0123456789abcdef", 40),
        _like("part 123-45#-789"),
        _like("~,###,###.## EUR"),
        _like("x = ~.######e-0~"),
        _like("127.0.0.1"),
        _like("ISSN 1#34-567#"),
    ),
}
