"""Object IDs: 25 characters of base 36 (swarmkit: identity/randomid.go)."""

from __future__ import annotations

from random import Random

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_ID_BITS = 17 * 8
_ID_LENGTH = 25


def base36(number: int) -> str:
    """A non-negative integer in lower-case base 36."""
    digits = []
    while True:
        number, rest = divmod(number, 36)
        digits.append(_DIGITS[rest])
        if not number:
            return "".join(reversed(digits))


def new_id(rng: Random) -> str:
    """A new ID for any kind of object: 136 random bits with the top one set, first digit dropped."""
    number = rng.getrandbits(_ID_BITS) | 1 << (_ID_BITS - 1)
    return base36(number)[1 : 1 + _ID_LENGTH]
