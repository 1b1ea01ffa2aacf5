"""Go's text/template, as users write it in environment, mounts, host names and payloads: ``{{.Service.Name}}``.

Data are strings, numbers, bools, dicts of strings and Records; functions beyond the
built-in ones are given by name. Errors carry Go's texts, which the manager shows to whoever made the mistake.

Left out on purpose, for there is nothing in a task they could be used on: methods, call, complex numbers, channels.

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
    """``text`` with its actions carried out on ``data``. Raises TemplateError."""
    if "{{" not in text:
        return text
    known = {**BUILTINS, **functions}
    return Executor(Parser(name, text, known).parse(), known).run(data)
