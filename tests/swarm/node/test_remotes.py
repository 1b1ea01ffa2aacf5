"""Which manager to try next."""

from __future__ import annotations

from collections import Counter
from random import Random

from swarm.node.remotes import Remotes

A, B = ("a", "10.0.0.1:2377"), ("b", "10.0.0.2:2377")


def test_an_observation_counts_half() -> None:
    remotes = Remotes([A])
    assert remotes.weight(A) == 5
    remotes.observe(A, 10)
    assert remotes.weight(A) == 8
    remotes.observe(A, -10)
    assert remotes.weight(A) == -1


def test_weights_are_bounded() -> None:
    remotes = Remotes()
    for _ in range(20):
        remotes.observe(A, 10_000)
        remotes.observe(B, -10_000)
    assert (remotes.weight(A), remotes.weight(B)) == (256, -255)


def test_a_manager_that_failed_is_chosen_rarely_but_is_not_excluded() -> None:
    remotes = Remotes([A, B])
    remotes.observe(B, -10)
    chosen = Counter(remotes.choose(Random(i)) for i in range(20_000))
    assert chosen[A] > 19_000
    assert chosen[B] > 0


def test_the_choice_follows_the_weights() -> None:
    remotes = Remotes([A, B])
    remotes.observe(A, 25)
    chosen = Counter(remotes.choose(Random(i)) for i in range(4000))
    assert 2.5 < chosen[A] / chosen[B] < 3.5


def test_excluded_managers_are_not_chosen() -> None:
    remotes = Remotes([A, B])
    assert remotes.choose(Random(1), exclude=["a"]) == B
    assert remotes.choose(Random(1), exclude=["a", "10.0.0.2:2377"]) is None


def test_only_known_managers_can_be_blamed() -> None:
    remotes = Remotes([A])
    remotes.observe_if_known(B, -10)
    assert remotes.managers() == [A]


def test_managers_that_left_are_forgotten() -> None:
    remotes = Remotes([A, B])
    remotes.keep_only([B])
    assert remotes.managers() == [B]
    assert Remotes().choose(Random(1)) is None
