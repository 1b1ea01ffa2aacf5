"""Fuzz target: every method of the manager, with messages that no client of ours would send, into a whole Manager.

Checked: nothing is raised, also not inside a stage (the manager is strict); a call with one answer gets one; who is
refused has changed nothing; neither secrets nor the CA's key leave through the control API; the manager comes to rest,
and afterwards still answers and writes.
"""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.message import Message

from swarm import api, defaults
from swarm.api.methods import METHODS
from swarm.errors import Code, SwarmError
from swarm.rpc import LOCAL, Peer, Reply, StreamData, StreamEnd
from tests.fuzz import house
from tests.fuzz.feed import Feed
from tests.fuzz.house import CSR, PEERS, ROOT, SECRET_VALUE, House, service_spec
from tests.fuzz.messages import Words, change, parsed

CALLS_MAX = 40
CA_KEY = ROOT.key_pem or b"not made"
TASKS_MAX = 20
BATCHED = frozenset(("Dispatcher/UpdateTaskStatus", "Dispatcher/UpdateVolumeStatus", "CA/IssueNodeCertificate"))
LATER = BATCHED | {"CA/NodeCertificateStatus", "RaftMembership/Join", "RaftMembership/Leave"}
RAFT = frozenset(("Raft/ProcessRaftMessage", "Raft/StreamRaftMessage"))
NAMES = sorted(name for name in METHODS if name not in RAFT)
FREQUENT = (
    "CreateService",
    "UpdateService",
    "UpdateNode",
    "UpdateCluster",
    "CreateNetwork",
    "CreateSecret",
    "RemoveNode",
)
PAUSES_S = (0.0, 0.1, 1.0, 5.0, 20.0, 61.0, 3_600.0, 50_000.0, 90 * 86_400.0)


def good(method: str, place: House, feed: Feed) -> Message | None:
    """A valid request, to be changed a little; None where the method needs no special one."""
    request = METHODS[method].request()
    store = place.store
    pick = feed.byte()
    match request:
        case api.CreateServiceRequest():
            request.spec.CopyFrom(service_spec("new"))
        case api.UpdateServiceRequest() if services := list(store.all(api.Service)):
            service = services[pick % len(services)]
            request.service_id = service.id
            request.service_version.CopyFrom(service.meta.version)
            request.spec.CopyFrom(service.spec)
        case api.UpdateNodeRequest() if nodes := list(store.all(api.Node)):
            node = nodes[pick % len(nodes)]
            request.node_id = node.id
            request.node_version.CopyFrom(node.meta.version)
            request.spec.CopyFrom(node.spec)
        case api.UpdateClusterRequest() if clusters := list(store.all(api.Cluster)):
            request.cluster_id = clusters[0].id
            request.cluster_version.CopyFrom(clusters[0].meta.version)
            request.spec.CopyFrom(clusters[0].spec)
        case api.CreateNetworkRequest():
            request.spec.annotations.name = "net2"
        case api.CreateSecretRequest() | api.CreateConfigRequest():
            request.spec.annotations.name, request.spec.data = "new", b"value"
        case api.IssueNodeCertificateRequest():
            request.csr, request.token = CSR, place.words().texts[-2]
        case api.UpdateTaskStatusRequest() if tasks := list(store.all(api.Task)):
            request.updates.add(task_id=tasks[pick % len(tasks)].id).status.state = api.RUNNING
        case _:
            return None
    return request


def one(data: bytes) -> None:
    """The whole of one input: a few calls and pauses."""
    feed = Feed(data)
    play = Play(House(_START))
    for _ in range(CALLS_MAX):
        if not feed or not play.alone:
            break
        play.step(feed)
    play.still_serves()


class Play:
    """Drives one Manager, and keeps what its callers have seen."""

    def __init__(self, place: House) -> None:
        self.place = place
        self.open: dict[int, str] = {}
        self.sessions: dict[str, str] = {}
        self.told = False  # a client has said the CA's key itself: it may be anywhere now

    @property
    def alone(self) -> bool:
        """Whether the manager is the only voter; members that joined never answer here."""
        return self.place.manager.raft.membership.voters == (1,)

    def step(self, feed: Feed) -> None:
        action = feed.byte()
        if action < 20:
            self.place.now += feed.choice(PAUSES_S)
            self._see(self.place.settle())
            self.place.now += defaults.STALL_SETTLE_S  # a manager that seems to have stood still reads first
            self._see(self.place.settle())
        elif action < 30 and self.open:
            self._more(feed)
        else:
            name = "Control/" + feed.choice(FREQUENT) if action < 120 else feed.choice(NAMES)
            self._call(feed, name)

    def _call(self, feed: Feed, name: str) -> None:
        method, place = METHODS[name], self.place
        words = place.words()
        words = Words((*words.texts, *self.sessions.values()), words.blobs, words.numbers)
        peer = feed.choice(PEERS)
        if method.roles and not peer.local and peer.role not in method.roles:
            peer = next(peer for peer in PEERS if peer.role in method.roles and not peer.local)
        request: Message | None = None
        if not method.client_streaming:
            how = feed.byte()
            request = parsed(feed, method.request) if how < 40 else good(name, place, feed) if how < 200 else None
            request = request or method.request()
            change(feed, request, words)
            _own_session(request, peer, self.sessions)
            modest(request)
            self.told = self.told or CA_KEY in request.SerializeToString()
        before, at = place.content(), place.now
        answers = place.call(name, request, peer)
        self._see(place.others)
        self._check(name, answers)
        ends = [answer for answer in answers if not isinstance(answer, StreamData)]
        if not self.alone:
            return
        if not ends:
            assert method.server_streaming or method.client_streaming or name in LATER, f"{name} is not answered"
            self.open[place.stream] = name
        elif isinstance(ends[0], StreamEnd) and name.startswith(("Control/", "CA/", "Resource/")):
            assert at == place.now
            assert place.content() == before, f"{name} was refused ({ends[0].error}) and changed the store"
        if isinstance(request, api.SessionRequest):
            for answer in answers:
                if isinstance(answer, StreamData) and isinstance(answer.message, api.SessionMessage):
                    self.sessions[peer.node_id or "n1"] = answer.message.session_id

    def _more(self, feed: Feed) -> None:
        """What else comes on a call that is open."""
        stream = feed.choice(list(self.open))
        method = METHODS[self.open[stream]]
        if method.client_streaming and feed.flag():
            message = parsed(feed, method.request) or method.request()
            change(feed, message, self.place.words())
            self._see(self.place.tell(StreamData(stream, message)))
        else:
            cancelled = SwarmError("cancelled", Code.CANCELED) if feed.flag() or not method.client_streaming else None
            self._see(self.place.tell(StreamEnd(stream, cancelled)))
            self.open.pop(stream, None)
        self._see(self.place.settle())

    def _see(self, effects: Sequence[object]) -> None:
        for effect in effects:
            if isinstance(effect, Reply | StreamEnd):
                self.open.pop(effect.stream, None)

    def _check(self, name: str, answers: list[Reply | StreamData | StreamEnd]) -> None:
        ends = [answer for answer in answers if not isinstance(answer, StreamData)]
        assert len(ends) <= 1, f"{name} was answered {len(ends)} times"
        for answer in answers:
            if isinstance(answer, StreamEnd):
                if answer.error is not None:
                    assert Code(answer.error.code) is not Code.INTERNAL, answer.error
                    assert answer.error.rpc_text
                continue
            assert isinstance(answer.message, METHODS[name].response)
            if name.startswith(("Control/", "Resource/", "CA/")):
                sent = answer.message.SerializeToString()
                assert SECRET_VALUE not in sent, f"{name} tells a secret"
                assert self.told or CA_KEY not in sent, f"{name} tells the CA's key"

    def still_serves(self) -> None:
        """The manager rests, and then takes a good read and a good write."""
        place = self.place
        self._see(place.settle())
        place.now += 30.0
        place.settle()
        place.now += defaults.STALL_SETTLE_S
        self._see(place.settle())
        assert isinstance(place.call("Health/Check", api.HealthCheckRequest())[-1], Reply)
        if not self.alone:
            return
        waiting = [name for name in self.open.values() if name in BATCHED]
        assert not waiting, f"never answered: {waiting}"
        assert isinstance(place.call("Control/ListServices", api.ListServicesRequest())[-1], Reply)
        create = api.CreateConfigRequest()
        create.spec.annotations.name, create.spec.data = "last", b"value"
        answers = place.call("Control/CreateConfig", create)
        assert isinstance(answers[-1], Reply) or "exist" in str(answers[-1]), answers
        api.StoreSnapshot.FromString(place.content())


def modest(request: Message) -> None:
    """Who may create services may ask for any number of tasks, and gets them, as in SwarmKit: here for a few."""
    if isinstance(request, api.CreateServiceRequest | api.UpdateServiceRequest):
        spec = request.spec
        if spec.HasField("replicated"):
            spec.replicated.replicas %= TASKS_MAX
        if spec.HasField("replicated_job"):
            spec.replicated_job.max_concurrent %= TASKS_MAX
            spec.replicated_job.total_completions %= TASKS_MAX


def _own_session(request: Message, peer: Peer, sessions: dict[str, str]) -> None:
    """Agents name their own session, mostly."""
    if hasattr(request, "session_id") and not request.session_id and not isinstance(request, api.SessionRequest):
        request.session_id = sessions.get(peer.node_id or "n1", "")


_START = house.furnish()


def seeds() -> list[bytes]:
    """Inputs to begin with: each method once, empty and valid, and a few sequences."""
    out = []
    for number in range(len(NAMES)):
        out += [bytes((130, number, 0, 250, 0)), bytes((130, number, 1, 100, 0, 0, 0, 3))]
    for number in range(len(FREQUENT)):
        out += [bytes((40, number, 0, 100, 1, 0, 5, 3, 40, number, 0, 100, 0, 1, 0, 20, 1))]
    session = bytes((130, NAMES.index("Dispatcher/Session"), 2, 250, 0))
    status = bytes((130, NAMES.index("Dispatcher/UpdateTaskStatus"), 2, 100, 0, 0))
    assignments = bytes((130, NAMES.index("Dispatcher/Assignments"), 2, 250, 0))
    out = [b"".join(out[start : start + 10]) for start in range(0, len(out), 10)]  # a manager costs more than a call
    out.append(session + assignments + status + bytes((5, 4)) + status + bytes((5, 6, 5, 7)))
    assert LOCAL in PEERS
    return out
