"""Join tokens: what guessing brings, what a token tells, and how soon another one counts."""

from __future__ import annotations

import asyncio
import hmac

import pytest
from structlog.testing import capture_logs

from certs import tokens
from certs.keys import new_csr, new_private_key
from swarm import api, defaults
from swarm.api import rpc
from swarm.errors import Code, SwarmError
from swarm.grpc import frames as h2
from swarm.manager import certificates
from tests.security.attacked_manager import AttackedManager, data_frames, framed, headers, settled

CSR = new_csr(new_private_key())
NO_TOKEN = (int(Code.INVALID_ARGUMENT), "A valid join token is necessary to join this cluster")


def issue(token: str) -> api.IssueNodeCertificateRequest:
    return api.IssueNodeCertificateRequest(csr=CSR, token=token, role=api.MANAGER)


async def ask(attacked: AttackedManager, token: str) -> tuple[int, str]:
    """The answer to a newcomer with this token: (code, text), or (0, node ID) when it is admitted."""
    try:
        answer = await (await attacked.connect()).unary(rpc.ISSUE_NODE_CERTIFICATE, issue(token))
    except SwarmError as error:
        return int(error.code), error.message
    assert isinstance(answer, api.IssueNodeCertificateResponse)
    return 0, answer.node_id


@pytest.mark.parametrize("role", ["worker", "manager"])
async def test_a_token_that_is_wrong_anywhere_is_worth_nothing(attacked: AttackedManager, role: str) -> None:
    good = getattr(attacked.cluster.root_ca.join_tokens, role)
    prefix, version, digest, secret = good.split("-")
    other = "0" if secret[-1] != "0" else "1"
    wrong = [
        "",
        "SWMTKN",
        secret,
        f"{prefix}-{version}-{digest}-{secret[:-1]}{other}",
        f"{prefix}-{version}-{digest}-{other}{secret[1:]}",
        f"{prefix}-{version}-{digest[::-1]}-{secret}",
        f"{prefix}-2-1-{digest}-{secret}",
        good[:-1],
        good + "0",
        good.upper(),
        f" {good}",
        f"{good}\n",
        "\u0661" + good,
    ]
    nodes = len(known(attacked))
    for token in wrong:
        assert await ask(attacked, token) == NO_TOKEN, token
    assert len(known(attacked)) == nodes
    code, node_id = await ask(attacked, good)
    assert code == 0
    node = attacked.process.store.get(api.Node, node_id)
    assert node is not None
    assert node.role == (api.MANAGER if role == "manager" else api.WORKER)  # what the request says of a role is nothing


def known(attacked: AttackedManager) -> list[str]:
    return [node.id for node in attacked.process.store.all(api.Node)]


def test_tokens_are_compared_in_constant_time_whatever_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    real = hmac.compare_digest

    def watch(left: bytes, right: bytes) -> bool:
        compared.append((left, right))
        return real(left, right)

    monkeypatch.setattr(hmac, "compare_digest", watch)
    for given in ("", "x", "SWMTKN-1-abc", "a-token", "a-tokem"):
        assert tokens.same_token("a-token", given) is (given == "a-token")
    assert [right for _, right in compared] == [b"", b"x", b"SWMTKN-1-abc", b"a-token", b"a-tokem"]


async def test_both_tokens_are_compared_at_each_try(attacked: AttackedManager, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hit on the manager's token takes as long as a miss."""
    expected: list[str] = []

    def watch(left: str, right: str) -> bool:
        expected.append(left)
        return tokens.same_token(left, right)

    monkeypatch.setattr(certificates, "same_token", watch)
    join_tokens = attacked.cluster.root_ca.join_tokens
    assert await ask(attacked, "SWMTKN-1-guess") == NO_TOKEN
    assert expected == [join_tokens.manager, join_tokens.worker]
    expected.clear()
    assert (await ask(attacked, join_tokens.manager))[0] == 0
    assert expected == [join_tokens.manager, join_tokens.worker] * 2  # before the pass and in it


async def test_a_token_tells_the_digest_of_the_root_and_nothing_else(attacked: AttackedManager) -> None:
    root = attacked.cluster.root_ca
    worker, manager = (tokens.parse_join_token(token) for token in (root.join_tokens.worker, root.join_tokens.manager))
    assert worker.root_digest == manager.root_digest == tokens.root_digest(root.ca_cert)
    assert worker.secret != manager.secret
    assert worker.secret not in repr(worker)
    assert not any(secret in root.ca_cert.decode() for secret in (worker.secret, manager.secret))


async def test_guesses_are_answered_bounded_and_logged_once(attacked: AttackedManager) -> None:
    with capture_logs() as logs:
        async with attacked.served_meanwhile():
            intruder = await attacked.intrude()
            frames = headers("NodeCA/IssueNodeCertificate")
            passes = attacked.process.store.index
            for number in range(200):
                stream = 2 * number + 1
                intruder.write(h2.header_frames(stream, frames, False, h2.DEFAULT_FRAME_BYTES))
                intruder.write(data_frames(stream, framed(issue(f"SWMTKN-1-{number}"))))
                if number % 10 == 9:
                    await intruder.until(lambda seen, number=number: len(seen.status) > number)  # type: ignore[misc]
            assert set(intruder.outcome.status.values()) == {NO_TOKEN}
            assert attacked.process.store.index == passes  # not one entry of the log
    assert [(entry["event"], entry["times"]) for entry in logs] == [("certificate.token_refused", 1)]
    assert all("SWMTKN" not in str(entry) for entry in logs)


async def test_an_address_gets_only_so_many_guesses_a_second(
    attacked: AttackedManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(defaults, "RPC_ANONYMOUS_CALLS_PER_ADDRESS_PER_S_MAX", 20)
    with capture_logs() as logs:
        async with attacked.served_meanwhile():
            for _ in range(5):
                intruder = await attacked.intrude()
                for stream in range(1, 101, 2):
                    intruder.request(stream, "NodeCA/IssueNodeCertificate", framed(issue("SWMTKN-1-guess")))
                    await asyncio.sleep(0)
                await intruder.end()
    assert sorted(entry["event"] for entry in logs) == ["certificate.token_refused", "rpc.connection_refused"]
    assert next(entry["code"] for entry in logs if "code" in entry) == "ENHANCE_YOUR_CALM"


@pytest.mark.parametrize("role", ["worker", "manager"])
async def test_a_rotated_token_counts_at_once_and_the_old_one_no_more(attacked: AttackedManager, role: str) -> None:
    manager = await attacked.connect(attacked.manager())
    before = api.JoinTokens()
    before.CopyFrom(attacked.cluster.root_ca.join_tokens)
    request = api.UpdateClusterRequest(cluster_id=attacked.cluster.id, cluster_version=attacked.cluster.meta.version)
    request.spec.CopyFrom(attacked.cluster.spec)
    setattr(request.rotation, f"{role}_join_token", True)
    answer = await manager.unary(rpc.UPDATE_CLUSTER, request)
    assert isinstance(answer, api.UpdateClusterResponse)
    after = answer.cluster.root_ca.join_tokens
    other = "manager" if role == "worker" else "worker"
    assert await ask(attacked, getattr(before, role)) == NO_TOKEN
    assert (await ask(attacked, getattr(after, role)))[0] == 0
    assert (await ask(attacked, getattr(before, other)))[0] == 0


async def test_a_joiner_that_gives_up_leaves_nothing_behind(attacked: AttackedManager) -> None:
    intruder = await attacked.intrude()
    for stream in range(1, 31, 2):
        request = api.NodeCertificateStatusRequest(node_id="nobody")
        intruder.request(stream, "NodeCA/NodeCertificateStatus", framed(request))
    await intruder.until(lambda seen: len(seen.status) == 15)
    assert {code for code, _ in intruder.outcome.status.values()} == {Code.NOT_FOUND}
    intruder.close()
    await settled(lambda: attacked.server.connection_count == 0)
    assert attacked.server._calls == {}
