"""Places for clients' work."""

from __future__ import annotations

from overlay.places import Places


def test_a_client_has_its_share_and_no_more() -> None:
    places = Places(total=3, per_client=2)
    assert [places.take("a") for _ in range(3)] == [True, True, False]
    assert [places.take("b"), places.take("b")] == [True, False]
    places.give_back("a")
    assert [places.take("b"), places.take("c")] == [True, False]
    for client in ("a", "b", "b"):
        places.give_back(client)
    assert [places.take("c"), places.take("c"), places.take("a")] == [True, True, True]
