"""Image references in their familiar form."""

from __future__ import annotations

import pytest

from engine_api.executor.references import familiar, is_image_id, is_pinned

DIGEST = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("busybox", "busybox:latest"),
        ("busybox:1.35", "busybox:1.35"),
        ("docker.io/library/busybox", "busybox:latest"),
        ("docker.io/busybox:1", "busybox:1"),
        ("index.docker.io/me/app", "me/app:latest"),
        ("library/busybox", "busybox:latest"),
        ("me/app", "me/app:latest"),
        ("localhost/app", "localhost/app:latest"),
        ("localhost:5000/app", "localhost:5000/app:latest"),
        ("localhost:5000/a/b:2", "localhost:5000/a/b:2"),
        ("registry.example.com/library/app", "registry.example.com/library/app:latest"),
        ("nosuch.invalid/img:1", "nosuch.invalid/img:1"),
        (f"busybox@{DIGEST}", f"busybox@{DIGEST}"),
        (f"docker.io/library/busybox:1@{DIGEST}", f"busybox:1@{DIGEST}"),
        ("ab" * 32, "ab" * 32),
        ("UPPER", "UPPER"),
        ("a b", "a b"),
        ("", ""),
    ],
)
def test_a_reference_becomes_familiar(reference: str, expected: str) -> None:
    assert familiar(reference) == expected
    assert familiar(expected) == expected


def test_only_a_digest_pins_an_image() -> None:
    assert is_pinned(f"busybox:1@{DIGEST}")
    assert not is_pinned("busybox:1")
    assert not is_pinned(DIGEST)
    assert is_image_id(DIGEST)
    assert not is_image_id(f"busybox@{DIGEST}")
