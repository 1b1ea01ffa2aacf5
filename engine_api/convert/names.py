"""Names for services that were created without one: an adjective and the surname of an engineer or mathematician."""

from __future__ import annotations

from random import Random

_ADJECTIVE_LINE = (
    "able brisk calm candid careful cheerful clever daring decent eager early earnest fair fluent frank gentle glad "
    "grand handy honest humble jolly keen kind lively loyal lucid merry modest neat noble patient plain polite prompt "
    "proud quick quiet ready robust serene sharp silent sober steady stout sturdy subtle swift tidy tireless upright "
    "vivid warm wise witty"
)

_SURNAME_LINE = (
    "abel ampere babbage backus bernoulli boole brunel cauchy cerf codd conway curie dijkstra dirac euclid euler "
    "faraday fermat fourier galois gauss germain goedel hamilton hamming hertz hilbert hoare hollerith hopper huygens "
    "jacquard kelvin kepler klein knuth lamport laplace leibniz liskov lovelace markov maxwell meitner minsky napier "
    "newton noether ohm pascal perlman planck poisson ramanujan riemann ritchie shannon tesla thompson turing volta "
    "watt wiener wirth zuse"
)

_ADJECTIVES = _ADJECTIVE_LINE.split()
_SURNAMES = _SURNAME_LINE.split()


def random_name(rng: Random) -> str:
    """ "calm_hopper": a valid service name."""
    return f"{rng.choice(_ADJECTIVES)}_{rng.choice(_SURNAMES)}"
