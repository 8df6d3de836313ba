"""Bearer tokens: one shape, no information, nothing stored that opens anything."""

import pytest

from appliance.control.auth import tokens
from appliance.control.auth.tokens import TokenKind
from appliance.core.errors import Unauthenticated

KEY = b"k" * 32


def test_a_token_comes_back_as_what_it_was() -> None:
    minted = tokens.mint(TokenKind.SERVICE, KEY)
    parsed = tokens.parse(minted.text, TokenKind.SESSION, TokenKind.SERVICE)
    assert (parsed.kind, parsed.id) == (TokenKind.SERVICE, minted.id)
    assert tokens.matches(parsed, minted.digest, KEY)
    assert not tokens.matches(parsed, minted.digest, b"x" * 32)


def test_the_secret_has_256_bits_and_shows_nowhere() -> None:
    made = [tokens.mint(TokenKind.SESSION, KEY) for _ in range(50)]
    secrets = {minted.text.split("_")[3] for minted in made}
    assert (len(secrets), {len(secret) for secret in secrets}) == (50, {52})
    for minted in made:
        shown = repr(minted) + repr(tokens.parse(minted.text, TokenKind.SESSION))
        assert minted.text.split("_")[3] not in shown


@pytest.mark.attack
def test_a_changed_or_foreign_token_is_refused_in_one_way() -> None:
    text = tokens.mint(TokenKind.SESSION, KEY).text
    other = tokens.mint(TokenKind.SESSION, KEY).text
    wrong = [
        "",
        "sla",
        text[:-1],
        text + "0",
        " " + text,
        text + "\n",
        text.upper(),
        text.replace("ses", "svc"),
        text[:40] + ("a" if text[40] != "a" else "b") + text[41:],
        text.rsplit("_", 1)[0] + "_" + other.rsplit("_", 1)[1],
        "x" * 100_000,
        tokens.mint(TokenKind.JOIN, KEY).text,
    ]
    messages = set()
    for presented in wrong:
        with pytest.raises(Unauthenticated) as raised:
            tokens.parse(presented, TokenKind.SESSION)
        messages.add(raised.value.message)
    assert len(messages) == 1
