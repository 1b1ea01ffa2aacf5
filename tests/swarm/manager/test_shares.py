"""Fair shares of the places for calls, and a leader that is flooded by one node."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from swarm import api, defaults
from swarm.errors import Code, Unavailable
from swarm.manager.shares import Shares, holder_of
from swarm.rpc import LOCAL, MANAGER_ROLE, WORKER_ROLE, Call, Peer, Reply, StreamEnd
from tests.fuzz.house import CLUSTER, CSR, House, furnish

WORKERS = tuple(Peer(f"w{i}", WORKER_ROLE, CLUSTER, f"10.1.0.{i}:40000") for i in range(4))
MANAGER = Peer("m1", MANAGER_ROLE, CLUSTER, "10.0.0.1:40000")
STRANGERS = tuple(Peer(addr=f"10.2.0.{i}:40000") for i in range(4))
FORWARDED = Peer("w0", WORKER_ROLE, CLUSTER, "10.1.0.0:40000", forwarder="m1")
EVERYBODY = (*WORKERS, MANAGER, *STRANGERS, FORWARDED, LOCAL)
RENEWAL = api.IssueNodeCertificateRequest(csr=CSR)


def call(stream: int, peer: Peer, method: str = "NodeCA/NodeCertificateStatus") -> Call:
    return Call(stream, method, api.NodeCertificateStatusRequest(node_id="n2"), peer)


def flood(shares: Shares, peer: Peer, first: int = 1) -> int:
    """As many calls as it may have; how many those are."""
    stream = first
    while shares.admit(call(stream, peer), waits=False) is None:
        stream += 1
    return stream - first


# --- shares --------------------------------------------------------------------------------------------------------


def test_one_node_gets_a_fraction_of_all_places_and_is_told_why() -> None:
    shares = Shares()
    most = flood(shares, WORKERS[0])
    assert most <= defaults.CALL_PLACES_MAX // defaults.CALL_SHARE_OF_NODE
    error = shares.admit(call(10**6, WORKERS[0]), waits=False)
    assert error is not None
    assert error.code == Code.RESOURCE_EXHAUSTED
    assert error.message.startswith(f"too many calls of node w0 are open: {most}")


def test_the_way_over_a_follower_gives_a_node_no_second_share() -> None:
    shares = Shares()
    flood(shares, WORKERS[0])
    assert shares.admit(call(10**6, FORWARDED), waits=False) is not None


def test_addresses_of_one_network_share() -> None:
    shares = Shares()
    flood(shares, Peer(addr="[fd00::1]:40000"))
    assert shares.admit(call(10**6, Peer(addr="[fd00::2]:40000")), waits=False) is not None
    assert shares.admit(call(10**6, Peer(addr="[fd00:0:0:1::2]:40000")), waits=False) is None


def test_many_floods_leave_places_for_everybody_else() -> None:
    shares, stream = Shares(), 1
    for i in range(200):
        stream += flood(shares, Peer(f"thief{i}", WORKER_ROLE, CLUSTER, "10.9.0.1:1"), stream)
        stream += flood(shares, Peer(addr=f"10.8.0.{i}:1"), stream)
    for peer in (WORKERS[0], MANAGER, LOCAL, STRANGERS[0]):
        assert shares.admit(call(stream, peer), waits=False) is None
        stream += 1


def test_what_is_answered_is_free_again() -> None:
    shares = Shares()
    most = flood(shares, WORKERS[0])
    shares.answered([Reply(1, api.HeartbeatResponse()), StreamEnd(2)])
    assert shares.held(WORKERS[0]) == most - 2
    assert shares.admit(call(10**6, WORKERS[0]), waits=False) is None


def test_who_hangs_up_keeps_the_places_of_writes_that_are_queued() -> None:
    shares = Shares()
    for stream in (1, 2):
        assert shares.admit(call(stream, WORKERS[0]), waits=False) is None
    shares.queued(2)
    shares.hung_up(1)
    shares.hung_up(2)
    assert shares.held(WORKERS[0]) == 1
    shares.answered([StreamEnd(2)])
    assert shares.all_held == 0


def test_streams_hold_places_only_while_they_wait_for_a_leader() -> None:
    shares = Shares()
    session = call(1, WORKERS[0], "Dispatcher/Session")
    assert shares.admit(session, waits=False) is None
    assert shares.all_held == 0
    assert shares.admit(session, waits=True) is None
    assert shares.all_held == 1
    shares.served([session])
    assert shares.all_held == 0


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["call", "call", "call", "answer", "hang up", "queue"]),
            st.integers(0, len(EVERYBODY) - 1),
            st.integers(0, 400),
        ),
        max_size=300,
    ),
    st.integers(0, 60),
)
def test_the_book_is_right_and_who_has_few_calls_is_always_served(
    steps: list[tuple[str, int, int]], places_max: int
) -> None:
    shares, open_calls, stream, queued = Shares(places_max, places_max), dict[int, str](), 0, dict[int, None]()
    for kind, who, which in steps:
        peer = EVERYBODY[who]
        chosen = list(open_calls)[which % len(open_calls)] if open_calls else 0
        if kind == "call":
            stream += 1
            full = shares.admit(call(stream, peer), waits=False)
            if full is None:
                open_calls[stream] = holder_of(peer)
            else:
                own = defaults.CALL_PLACES_OWN if peer.node_id or peer.local else defaults.CALL_PLACES_OWN_ANONYMOUS
                assert shares.held(peer) >= own
        elif kind == "answer":
            shares.answered([StreamEnd(chosen)])
            open_calls.pop(chosen, None)
            queued.pop(chosen, None)
        elif kind == "queue" and chosen:
            shares.queued(chosen)
            queued[chosen] = None
        elif kind == "hang up":
            shares.hung_up(chosen)
            if chosen not in queued:
                open_calls.pop(chosen, None)
        counts = Counter(open_calls.values())
        assert shares.all_held == len(open_calls)
        assert all(shares.held(one) == counts[holder_of(one)] for one in EVERYBODY)
        assert shares.all_held <= 2 * places_max + defaults.CALL_PLACES_OWN * len(EVERYBODY)


# --- a manager -----------------------------------------------------------------------------------------------------

N2 = Peer("n2", WORKER_ROLE, CLUSTER, "10.0.0.2:4000")
N3 = Peer("n3", MANAGER_ROLE, CLUSTER, "10.0.0.3:4000")


def answers(house: House, peer: Peer, method: str, request: api.IssueNodeCertificateRequest) -> list[object]:
    """A call while the leader's disk is slow: only what is answered at once."""
    house.stream += 1
    return [
        effect
        for effect in house.manager.handle(Call(house.stream, method, request, peer), house.now)
        if isinstance(effect, Reply | StreamEnd)
    ]


def refused(effects: list[object]) -> bool:
    return any(isinstance(e, StreamEnd) and e.error and e.error.code == Code.RESOURCE_EXHAUSTED for e in effects)


def test_a_node_that_floods_the_leader_is_refused_and_others_are_served() -> None:
    house = House(furnish())
    taken = 0
    while not refused(answers(house, N2, "NodeCA/IssueNodeCertificate", RENEWAL)):
        taken += 1
        assert taken <= defaults.CALL_PLACES_MAX // defaults.CALL_SHARE_OF_NODE
    assert refused(
        answers(house, Peer(N2.node_id, N2.role, CLUSTER, N2.addr, forwarder="n3"), "CA/GetUnlockKey", RENEWAL)
    )
    for peer in (N3, LOCAL, Peer("n9", WORKER_ROLE, CLUSTER, "10.0.0.9:1")):
        assert not refused(answers(house, peer, "NodeCA/IssueNodeCertificate", RENEWAL))


def test_a_node_that_calls_and_hangs_up_at_once_fills_no_queue() -> None:
    house = House(furnish())
    taken = 0
    while not refused(answers(house, N2, "NodeCA/IssueNodeCertificate", RENEWAL)):
        house.manager.handle(StreamEnd(house.stream, Unavailable("the caller went away")), house.now)
        taken += 1
        assert taken <= defaults.CALL_PLACES_MAX // defaults.CALL_SHARE_OF_NODE
