"""Which requests are ours: every registered route, what lies under its first segment, and nothing else."""

from __future__ import annotations

import re

import pytest

from engine_api.front.http1 import Head, parse_request
from engine_api.front.paths import local_requests
from engine_api.server.request import Route
from tests.engine_api.route_table import EVERY_ROUTE, IS_LOCAL

QUERIES = {"task": "filters=is-task", "": ""}


def _head(method: str, target: str) -> Head:
    return parse_request(f"{method} {target} HTTP/1.1\r\nHost: docker\r\n\r\n".encode())


def _target(route: Route) -> str:
    """A target that the route is for."""
    path = re.sub(r"\{\w+\}", "an.id-0_1", route.path)
    query = QUERIES[route.query]
    return f"{path}?{query}" if query else path


def _ours(method: str, target: str) -> bool:
    return IS_LOCAL(_head(method, target))


@pytest.mark.parametrize("route", EVERY_ROUTE, ids=lambda route: f"{route.method} {route.path}")
@pytest.mark.parametrize("prefix", ["", "/v1.41", "//v1.24", "http://docker/v1.41"])
def test_every_registered_route_is_ours(route: Route, prefix: str) -> None:
    assert _ours(route.method, prefix + _target(route))


@pytest.mark.parametrize("route", EVERY_ROUTE, ids=lambda route: f"{route.method} {route.path}")
def test_a_shared_route_is_ours_by_its_method_path_and_query_and_any_other_by_its_first_segment(route: Route) -> None:
    assert _ours("PATCH", _target(route)) is not route.shared
    assert _ours(route.method, _target(route).partition("?")[0] + "/more/of/it") is not route.shared
    if route.query:
        assert not _ours(route.method, _target(route).partition("?")[0])
        assert not _ours(route.method, _target(route).partition("?")[0] + "?other=1")


@pytest.mark.parametrize(
    "target",
    [
        "/",
        "/v1.41",
        "/v1.41/",
        "/containers/json",
        "/containers/json?all=1",
        "/containers/swarm/json",
        "/containers/prune?name=services",
        "/images/nodes/json",
        "/volumes/tasks",
        "/networks/",
        "/networks/a/b?scope=swarm",
        "/networks/a/b/connect",
        "/networksx",
        "/swarms",
        "/servicesx/a",
        "/xservices",
        "/x/services",
        "/v1.41/v1.41/services",
        "/v1.x/services",
        "/Services",
        "/plugins",
        "/session",
        "/grpc",
        "/auth",
        "/build",
        "/system/df",
        "/_pingx",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "HEAD", "PUT"])
def test_nothing_else_is_ours(method: str, target: str) -> None:
    assert not _ours(method, target)


@pytest.mark.parametrize("target", ["/swarm/of/tomorrow", "/v1.99/services/a/b/c", "/nodes/", "/%73warm/init"])
def test_unknown_paths_of_the_swarm_never_reach_the_engine(target: str) -> None:
    assert _ours("POST", target)


@pytest.mark.parametrize(
    ("method", "target", "ours"),
    [
        ("GET", "/v1.41/networks", True),
        ("GET", "/v1.41/networks?filters=x", True),
        ("GET", "/networks/host?verbose=true&scope=swarm", True),
        ("DELETE", "/v1.41/networks/host", True),
        ("POST", "/v1.41/networks/prune", True),
        ("POST", "/v1.41/networks/host/disconnect", True),
        ("PUT", "/v1.41/networks/host", False),
        ("DELETE", "/v1.41/networks", False),
    ],
)
def test_networks_are_ours_as_far_as_the_swarm_has_a_part_in_them(method: str, target: str, ours: bool) -> None:
    assert _ours(method, target) is ours


def test_without_routes_everything_is_the_engines() -> None:
    is_local = local_requests(())
    assert not is_local(_head("GET", "/swarm"))
    assert not is_local(_head("GET", "/"))
