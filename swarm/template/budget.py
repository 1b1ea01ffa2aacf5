"""What templates may cost: one budget for all templates of a spec, another one for all secrets and configs of a task.

Steps are tokens, visited nodes, called functions, verbs of printf, and entries of maps. Bytes are those of every text
that is read or made, as Python keeps it: four bytes for each character of a text that is not ASCII. A budget only
shrinks, so what templates can hold at the same time is bounded by it as well. Nothing here looks at a clock: what is
refused is the same on every machine.
"""

from __future__ import annotations

from swarm import defaults

_WIDE_CHARACTER_BYTES = 4


class OverBudget(Exception):
    """The templates cost too much; the text says which limit. Parser and executor add the place."""


def weight(text: str) -> int:
    """The bytes of a text in memory, at most."""
    return len(text) if text.isascii() else len(text) * _WIDE_CHARACTER_BYTES


class Budget:
    """Counts what templates cost. what: whose templates these are, for the error."""

    def __init__(self, what: str, steps: int, size: int) -> None:
        self._what = what
        self._steps_max = self.steps_left = steps
        self._size_max = self.bytes_left = size

    def step(self, count: int = 1) -> None:
        """Pay for steps. Raises OverBudget."""
        self.steps_left -= count
        if self.steps_left < 0:
            raise OverBudget(f"the templates of {self._what} exceeded {self._steps_max} steps")

    def bytes(self, count: int) -> None:
        """Pay for bytes. Raises OverBudget."""
        self.bytes_left -= count
        if self.bytes_left < 0:
            raise OverBudget(f"the templates of {self._what} read and write more than {self._size_max} bytes of text")

    def text(self, text: str) -> str:
        """Pay for a text that was made or is to be read; returns it. Raises OverBudget."""
        self.bytes(weight(text))
        return text

    def slow(self, text: str) -> None:
        """Pay for a text that is read character by character, for example to escape it. Raises OverBudget."""
        self.bytes(weight(text) * defaults.TEMPLATE_SLOW_BYTES_FACTOR)


def spec_budget() -> Budget:
    """For all templates in the container spec of one task or service."""
    return Budget("this spec", defaults.TEMPLATE_SPEC_STEPS_MAX, defaults.TEMPLATE_SPEC_BYTES_MAX)


def payload_budget() -> Budget:
    """For all secrets and configs of one task."""
    limits = defaults.TEMPLATE_PAYLOAD_STEPS_MAX, defaults.TEMPLATE_PAYLOAD_BYTES_MAX
    return Budget("this task's secrets and configs", *limits)
