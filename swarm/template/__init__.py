"""Go's text/template, as users write it in environment, mounts, host names and payloads: ``{{.Service.Name}}``.

Data are strings, numbers, bools, dicts of strings, and Records. The caller adds functions to the built-in ones by name.
Errors have Go's texts; the manager shows them to the user.

Not implemented, because nothing in a task could use them: methods, call, complex numbers, channels.

(go: src/text/template; swarmkit: template/template.go)
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from swarm.template.budget import Budget, OverBudget, payload_budget, spec_budget
from swarm.template.errors import TemplateError
from swarm.template.execute import Executor
from swarm.template.functions import BUILTINS, Function, FunctionError, getter
from swarm.template.parser import Parser
from swarm.template.values import Record

__all__ = [
    "Budget",
    "Function",
    "FunctionError",
    "Record",
    "TemplateError",
    "expand",
    "getter",
    "payload_budget",
    "spec_budget",
]

_NONE: Mapping[str, Function] = MappingProxyType({})
_NAME = "expansion"
_STEPS_TO_BEGIN = 10  # what an empty template costs


def expand(text: str, data: Any, budget: Budget, functions: Mapping[str, Function] = _NONE) -> str:
    """The result of executing the template ``text`` on ``data``, paid from ``budget``. Raises TemplateError."""
    if "{{" not in text:
        return text
    known = {**BUILTINS, **functions}
    try:
        budget.step(_STEPS_TO_BEGIN)
        budget.text(text)
    except OverBudget as error:
        raise TemplateError(f"template: {_NAME}: {error}") from None
    return Executor(Parser(_NAME, text, known, budget).parse(), known, budget).run(data)
