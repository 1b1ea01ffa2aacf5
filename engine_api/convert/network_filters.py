"""The filters of GET /networks for the networks of the swarm; the engine applies them to its own.

(moby: daemon/network/filter.go; api/types/filters, Match)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from engine_api.errors import BadParameter
from swarm import defaults

ACCEPTED = ("dangling", "driver", "id", "label", "name", "scope", "type")
PREDEFINED = frozenset(("bridge", "host", "none", "default"))

_SPECIAL = re.compile(r"[.^$*+?()\[\]{}|\\]")
_REPEATED = re.compile(r"[*+?{]")

Json = dict[str, Any]


class NetworkFilter:
    """See the module. Different keys are AND, values of one key are OR, but labels must all match."""

    def __init__(self, filters: Mapping[str, Sequence[str]]) -> None:
        """Raises BadParameter for a pattern that would take too long."""
        self._filters = {key: list(values) for key, values in filters.items() if values}
        self._patterns = {key: [_pattern(word) for word in self._filters.get(key, ())] for key in ("name", "id")}

    def wants(self, network: Json) -> bool:
        """Whether a client that gave these filters gets this network."""
        return all(self._matches(key, values, network) for key, values in self._filters.items())

    def _matches(self, key: str, values: list[str], network: Json) -> bool:
        predefined = network["Name"] in PREDEFINED
        match key:
            case "name" | "id":
                text = network["Name" if key == "name" else "Id"]
                return text in values or any(p is not None and p.search(text) for p in self._patterns[key])
            case "driver" | "scope":
                return network[key.capitalize()] in values
            case "label":
                return has_labels(network["Labels"] or {}, values)
            case "type":
                return ("builtin" if predefined else "custom") in values
            case "dangling":
                used = predefined or bool(network["Containers"])
                return used != (values[0] in ("1", "true"))
        return True


def has_labels(labels: Mapping[str, str], wanted: Sequence[str]) -> bool:
    """Whether all of ``key`` or ``key=value`` are there."""
    pairs = (word.partition("=") for word in wanted)
    return all(key in labels and (not equals or labels[key] == value) for key, equals, value in pairs)


def _pattern(word: str) -> re.Pattern[str] | None:
    """A regular expression as Go reads the usual ones; None: it is none.

    Go's never take long, Python's can. So groups are refused, and more repetitions than a name needs.
    """
    if not _SPECIAL.search(word):
        return re.compile(re.escape(word))
    if "(" in word or len(_REPEATED.findall(word)) > defaults.API_PATTERN_REPEATS_MAX:
        raise BadParameter(
            f"filter '{word}' is a regular expression with groups or with more than "
            f"{defaults.API_PATTERN_REPEATS_MAX} repetitions; use a part of the name"
        )
    try:
        return re.compile(word, re.ASCII)
    except (re.error, OverflowError, RecursionError):
        return None
