"""Headers, versions, errors and the two generations of engines beside us."""

from __future__ import annotations

import asyncio
import json
from io import BytesIO
from typing import Any

import pytest

from swarm import api, defaults
from swarm.errors import Code, SwarmError

_JSON = {"Content-Type": "application/json"}


async def _text(client: Any, method: str, path: str, **request: Any) -> tuple[int, str]:
    async with client.request(method, path, **request) as answer:
        return answer.status, await answer.text()


async def test_every_answer_says_version_and_engine(backend: Any, start: Any) -> None:
    client = await start(backend)
    for path in ("/v1.41/swarm", "/v1.41/nodes/nosuch", "/v1.41/nothing", "/v9.9/swarm"):
        async with client.get(path) as answer:
            assert answer.headers["Api-Version"] == "1.41"
            assert answer.headers["Server"] == "Docker/20.10.24+dfsg1 (linux)"
            assert answer.headers["Docker-Experimental"] == "false"
            assert answer.headers["Ostype"] == "linux"
            assert answer.headers["Content-Type"] == "application/json"
            assert (await answer.text()).endswith("}\n")


async def test_answers_without_a_body_have_no_content_type(backend: Any, start: Any) -> None:
    client = await start(backend)
    async with client.post("/v1.41/swarm/leave?force=1") as answer:
        assert answer.status == 200
        assert "Content-Type" not in answer.headers
        assert answer.headers["Content-Length"] == "0"
    async with client.delete("/v1.41/configs/cfg-none") as answer:
        assert answer.status == 404


async def test_options_on_anything_is_fine_and_head_is_no_route(backend: Any, start: Any) -> None:
    client = await start(backend)
    assert await _text(client, "OPTIONS", "/v1.41/anything/at/all") == (200, "")
    assert (await _text(client, "HEAD", "/v1.41/swarm"))[0] == 404


@pytest.mark.parametrize("path", ["//v1.41/swarm", "/v1.41/./swarm", "/v1.41/x/../swarm", "/v1.41/services/../swarm"])
async def test_a_path_that_is_not_clean_is_redirected_as_the_engine_does(backend: Any, start: Any, path: str) -> None:
    client = await start(backend)
    url = client.make_url("/").with_path(path, encoded=True).with_query("a=b")
    async with client.session.get(url, allow_redirects=False) as answer:
        assert (answer.status, answer.headers["Location"]) == (301, "/v1.41/swarm?a=b")


async def test_html_characters_are_not_escaped(backend: Any, start: Any) -> None:
    backend.put(api.Config(id="c" * 25, spec=api.ConfigSpec(annotations=api.Annotations(name="a<b>&"))))
    status, text = await _text(await start(backend), "GET", f"/v1.41/configs/{'c' * 25}")
    assert status == 200
    assert '"Name":"a<b>&"' in text


async def test_a_body_beyond_the_limit_is_refused(backend: Any, start: Any) -> None:
    client = await start(backend)
    body = BytesIO(b" " * (defaults.API_BODY_BYTES_MAX + 1))
    status, _ = await _text(client, "POST", "/v1.41/secrets/create", data=body, headers=_JSON)
    assert status == 413


@pytest.mark.parametrize("path", ["/swarm/init", "/swarm/join", "/swarm/update", "/swarm/unlock", "/nodes/x/update"])
async def test_a_request_to_the_swarm_itself_has_a_smaller_limit(backend: Any, start: Any, path: str) -> None:
    client = await start(backend)
    body = b'{"x":"' + b"x" * defaults.API_SWARM_BODY_BYTES_MAX + b'"}'
    status, text = await _text(client, "POST", path, data=BytesIO(body), headers=_JSON)
    assert (status, "http: request body too large" in text) == (413, True)


async def test_a_large_body_is_parsed_while_others_are_answered(backend: Any, start: Any) -> None:
    client = await start(backend)
    body = b'{"Name":"' + b"\\n" * 1_500_000 + b'"'
    large = asyncio.create_task(_text(client, "POST", "/v1.41/secrets/create", data=BytesIO(body), headers=_JSON))
    small = [await _text(client, "OPTIONS", "/v1.41/x") for _ in range(5)]
    assert {status for status, _ in small} == {200}
    status, text = await large
    assert (status, "unexpected EOF" in text) == (400, True)


async def test_a_body_with_too_many_values_is_refused(backend: Any, start: Any) -> None:
    client = await start(backend)
    body = b'{"Labels":{' + b",".join(b'"%d":""' % number for number in range(30_000)) + b"}}"
    status, text = await _text(client, "POST", "/v1.41/secrets/create", data=BytesIO(body), headers=_JSON)
    assert (status, "the text has more than 20000 values" in text) == (400, True)


async def test_a_query_with_too_many_parameters_is_refused(backend: Any, start: Any) -> None:
    client = await start(backend)
    limit = defaults.API_QUERY_PARAMETERS_MAX
    assert (await _text(client, "GET", "/v1.41/configs?" + "a&" * (limit - 1)))[0] == 200
    status, text = await _text(client, "GET", "/v1.41/configs?" + "a&" * limit)
    assert (status, "number of URL query parameters exceeded limit" in text) == (400, True)


async def test_a_version_of_many_digits_is_no_version(backend: Any, start: Any) -> None:
    client = await start(backend)
    assert (await _text(client, "GET", f"/v{'9' * 60}/configs"))[0] == 400
    assert (await _text(client, "GET", f"/v{'9' * 5000}/configs"))[0] == 404


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (Code.INVALID_ARGUMENT, 400),
        (Code.FAILED_PRECONDITION, 400),
        (Code.OUT_OF_RANGE, 400),
        (Code.UNAUTHENTICATED, 401),
        (Code.PERMISSION_DENIED, 403),
        (Code.NOT_FOUND, 404),
        (Code.ALREADY_EXISTS, 409),
        (Code.UNIMPLEMENTED, 501),
        (Code.UNAVAILABLE, 503),
        (Code.UNKNOWN, 500),
        (Code.DEADLINE_EXCEEDED, 500),
        (Code.RESOURCE_EXHAUSTED, 500),
    ],
)
async def test_errors_of_the_cluster_carry_their_code_as_text_and_status(
    backend: Any, start: Any, code: Code, status: int
) -> None:
    async def fail(method: str, request: Any) -> Any:
        raise SwarmError("why", code)

    backend.call = fail
    found = await _text(await start(backend), "GET", "/v1.41/swarm")
    assert found == (
        status,
        json.dumps({"message": f"rpc error: code = {code.label} desc = why"}, separators=(",", ":")) + "\n",
    )


async def test_a_bug_is_answered_without_its_text(backend: Any, start: Any) -> None:
    async def fail(method: str, request: Any) -> Any:
        raise KeyError("the secret itself")

    backend.call = fail
    status, text = await _text(await start(backend), "GET", "/v1.41/swarm")
    assert status == 500
    assert "secret" not in text


async def test_an_engine_of_the_29_generation_speaks_its_own_texts(backend: Any, start: Any) -> None:
    client = await start(backend, "1.52")
    empty = {"Name": "a"}
    cases = [
        ("POST", "/services/create", "{", 400, "invalid JSON: unexpected EOF"),
        ("POST", "/services/create", "{} x", 400, "unexpected content after JSON"),
        ("POST", "/services/create", "", 400, "mismatched Runtime and *Spec fields"),
        ("POST", "/services/create", '{"Name":5}', 400,
         "invalid JSON: json: cannot unmarshal number into Go struct field serviceWithLegacy.Name of type string"),
        ("GET", "/services?filters=nojson", "", 400, "invalid filter"),
        ("GET", '/services?filters={"foo":["x"]}', "", 400, "invalid filter 'foo'"),
        ("POST", "/services/min/update?version=43&registryAuthFrom=foo", json.dumps(empty), 400,
         "invalid registryAuthFrom 'foo'"),
        ("GET", "/services/min/logs", "", 400, "must specify at least one of 'stdout' or 'stderr'"),
        ("GET", "/services/min/logs?stdout=1&since=foo", "", 400,
         'invalid value for "since": invalid timestamp "foo": invalid seconds "foo": invalid syntax'),
        ("GET", "/v1.24/secrets", "", 404, "page not found"),
        ("GET", "/v1.29/configs", "", 404, "page not found"),
    ]  # fmt: skip
    for method, path, body, status, message in cases:
        headers = _JSON if body else {}
        found = await _text(
            client, method, path, data=body.encode() or None, headers=headers, skip_auto_headers=["Content-Type"]
        )
        assert (found[0], json.loads(found[1])["message"]) == (status, message), path
    status, text = await _text(client, "POST", "/services/create", data=b"{}", headers={"Content-Type": "text/plain"})
    assert "unsupported Content-Type header (text/plain): must be 'application/json'" in text
    spec = {"Name": "w", "TaskTemplate": {"ContainerSpec": {"Image": "busybox"}}}
    status, text = await _text(client, "POST", "/services/create", json=spec)
    assert status == 201
    assert json.loads(text)["Warnings"] is None


async def test_filters_work_in_both_shapes(backend: Any, start: Any) -> None:
    client = await start(backend)
    for filters in ('{"name":{"min":true}}', '{"name":["min"]}', '{"name":["min","min"]}'):
        status, text = await _text(client, "GET", f"/v1.41/services?filters={filters}")
        assert (status, [service["Spec"]["Name"] for service in json.loads(text)]) == (200, ["min"])
    for filters in ('{"name":5}', "[]", '{"name":{"a":1}}'):
        status, text = await _text(client, "GET", f"/v1.41/services?filters={filters}")
        assert status == 400
        assert "json: cannot unmarshal" in text


async def test_booleans_may_be_spelled_as_docker_py_spells_them(backend: Any, start: Any) -> None:
    client = await start(backend)
    await _text(client, "POST", "/v1.41/swarm/leave?force=False")
    await _text(client, "POST", "/v1.41/swarm/leave?force=True")
    assert backend.left == [False, True]
    status, text = await _text(client, "GET", "/v1.41/services?status=True")
    assert status == 200
    assert "ServiceStatus" in text
    assert (await _text(client, "GET", "/v1.41/services/min?insertDefaults=True"))[0] == 200
