"""The course of commands on three hosts of ours beside three stock hosts: every difference is known and explained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from integration.course import DIVERGENCE, Explained, Seen, differences, explained, judge, masked, side_by_side
from integration.course_steps import STEPS
from integration.lab import Lab

GOLDEN = Path(__file__).parents[1] / "tests/golden/stock-20.10/cli"
RECORDED = {
    "inactive_join_token": "before: swarm join-token worker",
    "inactive_node_ls": "before: node ls",
    "inactive_service_ls": "before: service ls",
    "inactive_stack_ls": "before: stack ls",
    "inactive_swarm_leave": "before: swarm leave",
    "inactive_unlock": "before: swarm unlock",
    "init_again": "init: twice",
    "join_token_rotate": "token: rotate",
    "join_token_rotate_q": "token: rotate quietly",
    "join_token_worker": "token: worker",
    "unlock_not_locked": "unlock: not locked",
    "unlock_key_unset": "unlock-key: not locked",
    "leave_manager": "leave: the last manager",
    "leave_force": "leave: a manager by force",
    "ca_display": "ca",
    "node_ls": "node ls",
    "worker_node_ls": "node ls: on a worker",
    "worker_service_create": "service create: on a worker",
    "node_ps_empty": "node ps: empty",
    "node_demote_last": "node demote: the last manager",
    "node_promote_already": "node promote: already",
    "node_update_nosuch": "node update: unknown node",
    "node_rm_ready": "node rm: not down",
    "node_rm_manager": "node rm: a manager",
    "node_rm_down": "node rm: down",
    "node_drain": "drain",
    "node_active": "activate",
    "secret_create_stdin": "secret create: another",
    "secret_create_dup": "secret create: again",
    "secret_inspect": "secret inspect",
    "secret_inspect_pretty": "secret inspect: pretty",
    "service_inspect_nosuch": "service inspect: unknown",
    "service_ps_nosuch": "service ps: unknown",
    "service_logs_nosuch": "logs: unknown",
    "service_ps_nonode": "nonode: ps",
    "scale_global": "global: scale",
    "rollback_noprev": "rollback: nothing to go back to",
    "swarm_update_expiry_low": "update: expiry too short",
    "ca_flag_without_rotate": "ca: flag without rotate",
}
"""Recording -> step of the course that does the same."""


@pytest.mark.timeout(600)
def test_the_course_shows_what_stock_shows_but_for_what_is_explained(lab: Lab, make_lab: Callable[..., Lab]) -> None:
    stock = make_lab(0, stock=3)
    pairs = side_by_side(lab, stock)
    found = differences(pairs)
    for _, text in found:
        print(text)
    unexplained, idle = judge(found, explained(DIVERGENCE.read_text()))
    assert not unexplained, "docs/divergence.md does not explain:\n" + "\n".join(unexplained)
    assert not idle, f"no longer true, remove from docs/divergence.md: {idle}"
    _compare_with_recordings(pairs)


def _compare_with_recordings(pairs: list[tuple[Seen, Seen]]) -> None:
    """Ours beside outputs that were recorded elsewhere, unless the CLI at hand is another and words them otherwise."""
    shown = {ours.step.name: (ours, stock) for ours, stock in pairs}
    worded_otherwise = []
    for file, step in RECORDED.items():
        ours, stock = shown[step]
        expected = masked(recorded(file), ours.step.mask)
        if stock.text != expected:
            worded_otherwise.append(step)
        else:
            assert ours.text == expected, step
    assert len(worded_otherwise) < len(RECORDED) / 4, worded_otherwise


def recorded(name: str) -> str:
    """What a stock 20.10 engine answered to a recorded command, as newer CLIs print it."""
    return (GOLDEN / f"{name}.txt").read_text().partition("\n")[2]


def test_steps_have_names_of_their_own() -> None:
    names = [step.name for step in STEPS if not step.silent]
    assert sorted(names) == sorted(set(names))


def test_ids_times_and_intermediate_progress_do_not_count() -> None:
    first = "8n2kq0w3m5f1v7x9c4b6z0a2s overall\nlt6kd0q2m9xa  web  Running 3 seconds ago\n"
    other = "2hfz8s0kq3m1v5x7c9b4n6a0w overall\nabcdefghijkl  web  Running About a minute ago\n"
    assert masked(first) == masked(other)
    assert masked("web  Running 3 seconds ago\n") != masked("web  Ready 3 seconds ago\n")
    assert masked("full.1.abcdefghijkl@node1 | out\n") == masked("full.1.4bc3efg1ijkl@node1 | out\n")
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
