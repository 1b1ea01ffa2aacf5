"""What the fuzzers found stays fixed: their seeds and committed inputs, run once."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from tests.fuzz.__main__ import BYTES_MAX, CORPUS, FILES_MAX, TARGETS


def inputs(target: str) -> list[Path]:
    return sorted((CORPUS / target).iterdir())


@pytest.mark.parametrize("target", TARGETS)
def test_a_corpus_is_small_and_there(target: str) -> None:
    sizes = [path.stat().st_size for path in inputs(target)]
    assert 0 < len(sizes) <= FILES_MAX
    assert sum(sizes) <= BYTES_MAX


@pytest.mark.parametrize("target", TARGETS)
def test_inputs_that_once_broke_a_rule_break_none_any_more(target: str) -> None:
    module = importlib.import_module(f"tests.fuzz.{target}")
    for path in inputs(target):
        try:
            module.one(path.read_bytes())
        except Exception as fault:
            raise AssertionError(f"{path}: {fault!r}") from fault


@pytest.mark.parametrize("target", TARGETS)
def test_a_fuzzer_begins_with_inputs_that_pass(target: str) -> None:
    module = importlib.import_module(f"tests.fuzz.{target}")
    seeds = module.seeds()
    assert seeds
    for data in seeds[:: max(1, len(seeds) // 20)]:
        module.one(data)
