"""Image references in the familiar form that engines show, always with a tag or a digest.

(distribution: reference/normalize.go)
"""

from __future__ import annotations

import re

_ALGORITHM = r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*"
_DIGEST = re.compile(rf"{_ALGORITHM}:[0-9a-fA-F]{{32,}}")
_REFERENCE = re.compile(
    r"(?P<name>[^:@]+(?::[0-9]+/[^:@]+)?)(?::(?P<tag>\w[\w.-]{0,127}))?(?:@(?P<digest>" + _DIGEST.pattern + r"))?",
    re.ASCII,
)
_PATH = re.compile(r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*")
_IMAGE_ID = re.compile(r"sha256:[0-9a-f]{64}")
_HEX_ID = re.compile(r"[0-9a-f]{64}")
_DEFAULT_DOMAINS = ("docker.io", "index.docker.io")


def familiar(reference: str) -> str:
    """``docker.io/library/busybox`` becomes ``busybox:latest``. An invalid reference is returned unchanged."""
    parsed = _REFERENCE.fullmatch(reference)
    if parsed is None or _HEX_ID.fullmatch(reference):
        return reference
    domain, path = _split(parsed["name"])
    if not _PATH.fullmatch(path):
        return reference
    name = path if domain in _DEFAULT_DOMAINS else f"{domain}/{path}"
    if domain in _DEFAULT_DOMAINS:
        name = name.removeprefix("library/") if path.count("/") == 1 else name
    tag, digest = parsed["tag"], parsed["digest"]
    if not tag and not digest:
        tag = "latest"
    return name + (f":{tag}" if tag else "") + (f"@{digest}" if digest else "")


def is_pinned(reference: str) -> bool:
    """Whether the reference names one exact image by digest."""
    parsed = _REFERENCE.fullmatch(reference)
    return parsed is not None and parsed["digest"] is not None


def is_image_id(reference: str) -> bool:
    """Whether the reference is an image ID, which cannot be pulled from a registry."""
    return _IMAGE_ID.fullmatch(reference) is not None


def _split(name: str) -> tuple[str, str]:
    """Registry and path; the default registry is Docker Hub."""
    first, slash, rest = name.partition("/")
    if not slash or not ("." in first or ":" in first or first == "localhost" or first.lower() != first):
        return "docker.io", name if slash else f"library/{name}"
    return first, rest if first not in _DEFAULT_DOMAINS or "/" in rest else f"library/{rest}"
