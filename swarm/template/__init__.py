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

from swarm.template.errors import TemplateError
from swarm.template.execute import Executor
from swarm.template.functions import BUILTINS, Function, FunctionError, getter
from swarm.template.parser import Parser
from swarm.template.values import Record

__all__ = ["Function", "FunctionError", "Record", "TemplateError", "expand", "getter"]

_NONE: Mapping[str, Function] = MappingProxyType({})


def expand(text: str, data: Any, functions: Mapping[str, Function] = _NONE, name: str = "expansion") -> str:
    """The result of executing the template ``text`` on ``data``. Raises TemplateError."""
    if "{{" not in text:
        return text
    known = {**BUILTINS, **functions}
    return Executor(Parser(name, text, known).parse(), known).run(data)
