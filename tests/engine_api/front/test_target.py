"""Targets of requests: which are refused, and that what is judged is what the engine would route."""

from __future__ import annotations

from random import Random

import pytest
from aiohttp import web

from engine_api.front.http1 import BadMessage, Head, parse_request
from engine_api.front.paths import local_requests
from engine_api.front.target import canonical_target, clean_path, decoded_query, parse_target
from engine_api.server.request import ApiRequest, Route
from tests.engine_api.route_table import IS_LOCAL
from tests.fuzz.http1 import METHODS, TARGET_PARTS, check_path


async def _nothing(_: ApiRequest) -> web.StreamResponse:
    return web.Response()


WITH_QUERY = local_requests(
    [Route("GET", "/networks/{id}", _nothing, shared=True, query=r"(?:\A|&)scope=swarm(?:&|\Z)")]
)


def _head(target: bytes, method: bytes = b"GET", *lines: bytes) -> Head:
    return parse_request(b"\r\n".join((method + b" " + target + b" HTTP/1.1", *lines, b"", b"")))


@pytest.mark.parametrize(
    "target",
    [
        b"http:/v1.41/swarm",
        b"HTTP:/swarm",
        b"x:/v1.41/swarm/init",
        b"x+-.1:/swarm",
        b"http:swarm",
        b"http:///swarm",
        b"http://?/swarm",
        b"://docker/swarm",
        b"1x://docker/swarm",
        b"swarm",
        b"docker:2375",
        b"docker/swarm",
        b"?/swarm",
        b"**",
        b"*/swarm",
        b"http://a\\b/swarm",
        b'http://a"b/swarm',
        b"http://a<b/swarm",
        b"http://\xc3\xa9/swarm",
        b"/containers/json#/swarm",
        b"/services/a#/update",
        b"/swarm%",
        b"/swarm%2",
        b"/swarm%zz",
        b"/containers/%u0073warm/json",
    ],
)
@pytest.mark.parametrize("method", [b"GET", b"POST", b"CONNECT"])
def test_a_target_that_is_no_path_and_no_url_with_a_host_is_refused(method: bytes, target: bytes) -> None:
    with pytest.raises(BadMessage) as refused:
        _head(target, method)
    assert refused.value.status == 400


@pytest.mark.parametrize("target", [b"docker:2375", b"*", b"http://docker/swarm", b"x/swarm"])
def test_a_connect_to_anything_but_a_path_is_refused(target: bytes) -> None:
    with pytest.raises(BadMessage):
        _head(target, b"CONNECT")


@pytest.mark.parametrize(
    "target",
    [
        b"/v1.41/./swarm",
        b"/v1.41//swarm",
        b"//v1.41/swarm",
        b"/containers/../swarm",
        b"/v1.41/x/%2e%2E/swarm/init",
        b"/%2f%2Fswarm",
        b"http://docker//swarm",
        b"http://u:p@[::1]:80/%73warm",
        b"/v..1/swarm",
        b"/v%31.41%2Fswarm",
        b"/swarm/../swarm",
        b"/swarm\n".replace(b"\n", b"%0A/..") + b"/swarm",
    ],
)
def test_a_path_that_is_a_swarm_path_for_the_engine_or_leads_to_one_is_ours(target: bytes) -> None:
    assert IS_LOCAL(_head(target))


@pytest.mark.parametrize(
    "query", [b"scope=swarm", b"s%63ope=sw%61rm", b"verbose=1;scope=swarm", b"a=%26&scope=swarm", b"scope=swarm&x=+"]
)
def test_a_query_is_judged_in_every_spelling(query: bytes) -> None:
    assert WITH_QUERY(_head(b"/networks/a?" + query))


@pytest.mark.parametrize("query", [b"scope=swarmed", b"x=%26scope=swarm", b"scope%3Dswarm=", b"xscope=swarm"])
def test_what_only_looks_like_another_query_is_not_taken_for_it(query: bytes) -> None:
    assert not WITH_QUERY(_head(b"/networks/a?" + query))


def test_fifty_thousand_targets_of_odd_parts_are_judged_as_go_would_route_them() -> None:
    rng, judged = Random(15), 0
    for _ in range(50_000):
        method = rng.choice(METHODS)
        target = b"".join(rng.choices(TARGET_PARTS, k=rng.randint(1, 7)))
        try:
            head = _head(target, method)
        except BadMessage:
            continue
        judged += 1
        local = IS_LOCAL(head)
        check_path(head, local, *(head.canonical_line if local else head.first_line).split(b" ")[:2])
    assert judged > 1_000


@pytest.mark.parametrize("path", [b"/", b"/swarm", b"/a b\xc3\xa9", b"/%73", b"/a?b", b"/a#b", b"//a/./..", b"/\0\n%"])
@pytest.mark.parametrize("query", [b"", b"a=b", b"?%zz&;"])
def test_a_canonical_target_is_read_as_the_path_that_it_was_made_of(path: bytes, query: bytes) -> None:
    assert parse_target(b"GET", canonical_target(path, query)) == (path, query)


@pytest.mark.parametrize(
    ("path", "cleaned"),
    [
        (b"/", b"/"),
        (b"", b"/"),
        (b"*", b"/*"),
        (b"//", b"/"),
        (b"/a//b/", b"/a/b/"),
        (b"/./a/../..//b", b"/b"),
        (b"/a/..", b"/"),
        (b"/a/../", b"/"),
        (b"/.a/..b", b"/.a/..b"),
        (b"//host/x", b"/host/x"),
    ],
)
def test_paths_are_cleaned_as_the_engines_router_cleans_them(path: bytes, cleaned: bytes) -> None:
    assert clean_path(path) == cleaned


def test_a_decoded_query_has_its_separators_only_between_parameters() -> None:
    assert decoded_query(b"a=1;b=%26+%3b&c") == b"a=1&b=%26 ;&c"


@pytest.mark.parametrize("value", [b"a/b", b"a b", b"docker\x01", b"a\xff", b"<docker>", b"a,b/"])
def test_a_malformed_host_is_refused(value: bytes) -> None:
    with pytest.raises(BadMessage):
        _head(b"/", b"GET", b"Host: " + value)


def test_two_hosts_are_refused_and_an_empty_one_is_not() -> None:
    with pytest.raises(BadMessage):
        _head(b"/", b"GET", b"Host: a", b"host: a")
    for value in (b"", b"docker", b"[::1]:2376", b"api.moby.localhost"):
        assert _head(b"/", b"GET", b"Host: " + value).hosts == (value,)


@pytest.mark.parametrize("protocol", [b"h2c", b"H2C", b"websocket, h2c", b"h2"])
def test_http_2_in_which_nobody_looks_is_spoken_only_where_build_clients_speak_it(protocol: bytes) -> None:
    lines = (b"Connection: Upgrade", b"Upgrade: " + protocol)
    for target in (b"/session", b"/v1.41/grpc", b"http://docker/v1.24/session?x=y"):
        assert _head(target, b"POST", *lines).upgrade
    for target in (b"/", b"/containers/a/attach", b"/containers/grpc", b"/v1.41/session/x"):
        with pytest.raises(BadMessage):
            _head(target, b"POST", *lines)
