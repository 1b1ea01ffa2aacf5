"""Join tokens and unlock keys."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certs import tokens
from certs.errors import InvalidJoinToken, InvalidUnlockKeyText

REAL_DIGEST = "a4e651fb8c4e7dfe3149840aab676922814226b89ff0862bb72d2f2e11a3decd"
REAL_TOKEN = "SWMTKN-1-43yhor31sfi136i2cco5pvn0xyl74b00nizmm3z1ima1m9x32l-8bhraohfs3r230252d38xpt4m"

DIGESTS = st.binary(min_size=32, max_size=32).map(bytes.hex)
SECRETS = st.integers(0, 2**128 - 1)


def test_a_real_token_is_rebuilt_exactly() -> None:
    parsed = tokens.parse_join_token(REAL_TOKEN)
    assert (parsed.version, parsed.root_digest, parsed.fips) == (1, REAL_DIGEST, False)
    assert tokens.join_token(REAL_DIGEST, int(parsed.secret, 36)) == REAL_TOKEN


@given(DIGESTS, SECRETS, st.booleans())
def test_tokens_round_trip(digest: str, secret: int, fips: bool) -> None:
    token = tokens.join_token(digest, secret, fips)
    parsed = tokens.parse_join_token(token)
    assert parsed.root_digest == digest
    assert int(parsed.secret, 36) == secret
    assert parsed.fips is fips
    assert parsed.version == (2 if fips else 1)
    assert len(token) == len("SWMTKN-2-1--" if fips else "SWMTKN-1--") + 75


def test_a_token_names_the_pem_bytes_of_the_root() -> None:
    token = tokens.new_join_token(b"root\n", Random(1))
    assert tokens.parse_join_token(token).root_digest == tokens.root_digest(b"root\n")
    assert tokens.new_join_token(b"root\n", Random(2)) != token


def test_version_2_without_fips_is_understood() -> None:
    digest, secret = REAL_TOKEN.split("-")[2:]
    assert tokens.parse_join_token(f"SWMTKN-2-0-{digest}-{secret}").fips is False


DIGEST, SECRET = REAL_TOKEN.split("-")[2:]


@pytest.mark.parametrize(
    "token",
    [
        "",
        "SWMTKN",
        "SWMTKN-1",
        REAL_TOKEN + "x",
        REAL_TOKEN[:-1],
        REAL_TOKEN.replace("SWMTKN-1", "SWMTKN-3"),
        REAL_TOKEN.replace("SWMTKN-1", "SWMTKN-2"),
        f"SWMTKN-2-2-{DIGEST}-{SECRET}",
        f"SWMTKN-1-1-{DIGEST}-{SECRET}",
        f"SWMKEY-1-{DIGEST}-{SECRET}",
        f"SWMTKN-1-{DIGEST[:-1]}_-{SECRET}",
        f"SWMTKN-1-{'z' * 50}-{SECRET}",
        f"SWMTKN-1-{DIGEST}-{' ' * 25}",
    ],
)
def test_a_malformed_token_is_refused_without_repeating_it(token: str) -> None:
    with pytest.raises(InvalidJoinToken) as caught:
        tokens.parse_join_token(token)
    assert str(caught.value) == "invalid join token"


@given(st.text(max_size=100))
def test_any_text_is_a_token_or_refused(text: str) -> None:
    with pytest.raises(InvalidJoinToken):
        tokens.parse_join_token(text)


def test_the_secret_is_not_in_the_repr() -> None:
    assert SECRET not in repr(tokens.parse_join_token(REAL_TOKEN))


def test_tokens_are_equal_only_to_themselves_and_never_when_empty() -> None:
    assert tokens.same_token(REAL_TOKEN, REAL_TOKEN)
    assert not tokens.same_token(REAL_TOKEN, REAL_TOKEN.upper())
    assert not tokens.same_token("", "")
    assert not tokens.same_token(REAL_TOKEN, "\N{SNOWMAN}")


@given(st.binary(min_size=32, max_size=32))
def test_unlock_keys_round_trip(key: bytes) -> None:
    text = tokens.unlock_key_text(key)
    assert len(text) == len("SWMKEY-1-") + 43
    assert tokens.parse_unlock_key(text) == key


@pytest.mark.parametrize(
    "text",
    [
        "",
        "SWMKEY-1-",
        "SWMKEY-2-" + "A" * 43,
        "SWMKEY-1-" + "A" * 42,
        "SWMKEY-1-" + "*" * 43,
        "SWMKEY-1-" + "A" * 43 + "=",
        "SWMKEY-1-\N{SNOWMAN}",
    ],
)
def test_a_malformed_unlock_key_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(InvalidUnlockKeyText) as caught:
        tokens.parse_unlock_key(text)
    assert str(caught.value) == "invalid key string"
