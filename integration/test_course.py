"""The course of commands on three hosts of ours beside three stock hosts: every difference is known and explained."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from integration.course import DIVERGENCE, Explained, explained, judge, masked, side_by_side
from integration.course_steps import STEPS
from integration.lab import Lab


@pytest.mark.timeout(600)
def test_the_course_shows_what_stock_shows_but_for_what_is_explained(lab: Lab, make_lab: Callable[..., Lab]) -> None:
    stock = make_lab(0, stock=3)
    found = side_by_side(lab, stock)
    for _, text in found:
        print(text)
    unexplained, idle = judge(found, explained(DIVERGENCE.read_text()))
    assert not unexplained, "docs/divergence.md does not explain:\n" + "\n".join(unexplained)
    assert not idle, f"no longer true, remove from docs/divergence.md: {idle}"


def test_steps_have_names_of_their_own() -> None:
    names = [step.name for step in STEPS if not step.silent]
    assert sorted(names) == sorted(set(names))


def test_ids_times_and_intermediate_progress_do_not_count() -> None:
    first = "8n2kq0w3m5f1v7x9c4b6z0a2s overall\nlt6kd0q2m9xa  web  Running 3 seconds ago\n"
    other = "2hfz8s0kq3m1v5x7c9b4n6a0w overall\nabcdefghijkl  web  Running About a minute ago\n"
    assert masked(first) == masked(other)
    assert masked("web  Running 3 seconds ago\n") != masked("web  Ready 3 seconds ago\n")
    early = "id\noverall progress: 0 out of 1 tasks\n1/1: preparing\noverall progress: 1 out of 1 tasks\n1/1: running\n"
    assert masked(early) == masked("id\noverall progress: 1 out of 1 tasks\n1/1: running\n")


def test_a_difference_needs_a_row_for_each_line_and_each_row_a_difference() -> None:
    rows = explained("| `a*` | what | `old` | `new`, `newer` | why |\n| --- | | | | |\n| `b` | x | `x` | `y` | why |\n")
    assert rows == [Explained(("a*",), ("old",), ("new", "newer")), Explained(("b",), ("x",), ("y",))]
    fine = "### a1: title\n--- stock\n+++ ours\n@@ -1 +1 @@\n-old text\n+newer text\n same\n"
    assert judge([("a1", fine)], rows) == ([], [rows[1]])
    more = fine + "+something else\n"
    assert judge([("a1", more)], rows) == ([more], [rows[1]])
    assert judge([("c", fine)], rows)[0] == [fine]
