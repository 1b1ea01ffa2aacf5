"""Every recorded call that is in reach gets the recorded status, and the recorded text after IDs are masked."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Mapping
from io import BytesIO
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from yarl import URL

from engine_api.backend import LocalNode, LocalNodeState
from engine_api.convert.address import Interface
from engine_api.server.request import ApiRequest, EngineHooks
from swarm import api
from swarm.api.objects import KINDS
from tests.engine_api.conftest import find_local_network, golden

ROWS = {
    row["name"]: row
    for row in map(json.loads, (Path(__file__).parents[2] / "golden/stock-20.10/errors.jsonl").read_text().splitlines())
}

OUT_OF_REACH = {
    r"ctr_.*|net_connect_404|net_(connect|start)_nonattachable": "the engine's own answer, proxied",
    r"inactive_overlay_create": "the engine's own answer, proxied",
    r"init_bad_listen_port|init_force_on_inactive_badlisten": "binding a port; engine_api.cluster",
    r"join_(wrong_.*|unreachable|refused|badtoken|token_v9)": "needs a remote manager; engine_api.cluster",
    r"leave_.*|.*_leave(_force)?|unlock_.*|.*_unlock": "state of the node; engine_api.cluster",
    r"noquorum_.*|evicted_.*": "no leader; swarm.manager",
    r"swarm_update_(extca_unreachable_accepted|restore)": "follow on rows that changed the cluster before",
    r"logs_pending_task": "a stream, see test_logs",
}

_INACTIVE = (
    'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm '
    "and try again."
)
_STATES = {
    "inactive": (LocalNode(), _INACTIVE),
    "errorstate": (LocalNode(LocalNodeState.ERROR), _INACTIVE),
    "worker": (
        LocalNode(LocalNodeState.ACTIVE, "w"),
        "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state. "
        "Please run this command on a manager node or promote the current node to a manager.",
    ),
    "locked": (
        LocalNode(LocalNodeState.LOCKED),
        "Swarm is encrypted and needs to be unlocked before it can be used. "
        'Please use "docker swarm unlock" to unlock it.',
    ),
}
_TWO_ON_ETH0 = [Interface("eth0", (ip_address("10.99.0.1"), ip_address("10.98.0.1")), device=True)]
_INTERFACES = {
    "init_multi_same_iface": _TWO_ON_ETH0,
    "init_adv_iface_two_addrs": _TWO_ON_ETH0,
    "init_multi_ifaces": [
        Interface("eth0", (ip_address("10.99.0.1"),), device=True),
        Interface("eth1", (ip_address("10.97.0.1"),), device=True),
    ],
}
_BIG = {"secret_big": 512_000, "config_big": 1_024_000, "config_500k_accepted": 500_000}
_ID = re.compile(r"\b[0-9a-z]{25}\b")


def out_of_reach(name: str) -> str | None:
    """Why a row is not replayed here."""
    return next((why for pattern, why in OUT_OF_REACH.items() if re.fullmatch(pattern, name)), None)


def _body(row: dict[str, Any]) -> BytesIO | None:
    if row["name"] in _BIG:
        big = {"Name": "big", "Data": b64encode(b"x" * _BIG[row["name"]]).decode()}
        return BytesIO(json.dumps(big).encode())
    return BytesIO(row["request"].encode()) if row["request"] else None


def _prepare(backend: Any, row: dict[str, Any]) -> None:
    """State and versions of the moment when the row was recorded."""
    name = row["name"]
    if name.startswith(("init_", "join_")) and not name.endswith("_again"):
        backend.node, backend.gate = _STATES["inactive"]
    for prefix, (node, gate) in _STATES.items():
        if name.startswith(prefix + "_"):
            backend.node, backend.gate = node, gate
    if name.startswith("errorstate_") and name.split("_")[1] not in ("init", "join"):
        backend.gate = _INACTIVE
    if name == "net_predefined":
        bridge = api.Network(id="predefined")
        bridge.spec.annotations.name = "bridge"
        backend.put(bridge)
    backend.interfaces = _INTERFACES.get(name, backend.interfaces)
    found = re.fullmatch(
        r"/v[0-9.]+/(nodes|services|secrets|configs|swarm)(?:/([^/]+))?/update\?version=(\d+).*", row["path"]
    )
    if found and int(found[3]) > 1:
        _set_version(backend, found[1], found[2], int(found[3]))


def _set_version(backend: Any, plural: str, word: str | None, index: int) -> None:
    kind = next(kind for kind in KINDS.values() if kind.plural == ("clusters" if plural == "swarm" else plural))
    for obj in backend.store.all(kind.message):
        names = (obj.id, obj.spec.annotations.name, getattr(getattr(obj, "description", None), "hostname", ""))
        if word is None or word in names:
            obj.meta.version.index = index


class RecordedEngine:
    """The engine beside us, as far as routes of networks ask it."""

    def __init__(self) -> None:
        self.hooks = EngineHooks(find_local_network=find_local_network, ask=self.ask)

    async def ask(self, path: str, request: ApiRequest, query: Mapping[str, str]) -> Any:
        if path == "/info":
            return {"Plugins": {"Network": ["bridge", "host", "ipvlan", "macvlan", "null", "overlay"]}}
        assert path == "/networks", path
        scopes = json.loads(query.get("filters") or "{}").get("scope", ["local"])
        return [network for network in golden("networks") if network["Scope"] == "local" and "local" in scopes]


def _mask(text: str) -> str:
    return _ID.sub("<id>", text)


@pytest.mark.parametrize("name", [name for name in ROWS if not out_of_reach(name)])
async def test_a_recorded_call_is_answered_as_recorded(backend: Any, start: Any, name: str) -> None:
    row = ROWS[name]
    _prepare(backend, row)
    client = await start(backend, hooks=RecordedEngine().hooks)
    content_type = "text/plain" if name == "api_text_body" else "application/json"
    headers = {"Content-Type": content_type} if row["request"] else {}
    path = URL(row["path"], encoded=True)
    async with client.request(row["method"], path, data=_body(row), headers=headers) as answer:
        text = await answer.text()
    assert answer.status == row["status"], text
    if row["status"] == 200 and row["method"] == "GET":
        assert _shape(json.loads(text)) == _shape(json.loads(row["response"]))
    else:
        assert _mask(text.rstrip("\n")) == _mask(row["response"])


def _shape(value: Any) -> Any:
    """Keys and types of a body, for answers whose values depend on what was done before."""
    if isinstance(value, dict):
        return {key: _shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_shape(item) for item in value[:1]]
    return type(value).__name__


def test_every_row_out_of_reach_is_there_and_most_rows_are_in_reach() -> None:
    for pattern in OUT_OF_REACH:
        assert any(re.fullmatch(pattern, name) for name in ROWS), pattern
    assert sum(out_of_reach(name) is None for name in ROWS) > 190
