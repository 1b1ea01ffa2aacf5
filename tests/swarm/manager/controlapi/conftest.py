"""Drives the method table of swarm.manager.controlapi on the cluster in which tests/golden's errors were recorded."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from google.protobuf.message import Message

from certs.root import RootCA
from certs.tokens import new_join_token
from swarm import api
from swarm.errors import SwarmError
from swarm.manager.controlapi.methods import control as control_methods
from swarm.store.store import Store
from swarm.store.tx import Tx
from tests.swarm.manager.fake_members import FakeMembers

NOW = 1_700_000_000.0
ROOT = RootCA.create(NOW)


class ControlHarness:
    """Drives the control API: calls methods by name; each write is one pass and one entry."""

    def __init__(self) -> None:
        self.store = Store()
        self.group = FakeMembers()
        self.now = NOW
        self.rng = Random("controlapi")
        self.root = ROOT
        self.table = control_methods(self.group)

    def call(self, method: str, request: Message) -> Any:
        """The response; a write is committed, one that fails changes nothing."""
        handler = self.table[f"Control/{method}"]
        if not handler.write:
            return handler.function(self.store, request)
        handler.check(request)
        tx = self.tx()
        with tx.savepoint():
            response = handler.function(tx, request)
        self.commit(tx)
        return response

    def refused(self, method: str, request: Message) -> str:
        """The text that users see for a call that must fail, "<Code>: <message>"; the store must not change."""
        before = self.store.save()
        with pytest.raises(SwarmError) as caught:
            self.call(method, request)
        assert self.store.save() == before
        return f"{caught.value.code.label}: {caught.value.message}"

    def tx(self) -> Tx:
        self.now += 1
        return Tx(self.store, self.now, self.rng)

    def commit(self, tx: Tx) -> None:
        self.store.apply(tx.actions(), self.store.index + 1)

    def put(self, *objects: Message) -> None:
        """Store objects as they are, without any check."""
        tx = self.tx()
        for obj in objects:
            tx.create(obj)
        self.commit(tx)

    def version(self, cls: type[Message], object_id: str) -> api.Version:
        obj: Any = self.store.get(cls, object_id)
        return api.Version(index=obj.meta.version.index)

    @staticmethod
    def service_spec(name: str = "bad", image: str = "busybox:latest", replicas: int = 1) -> api.ServiceSpec:
        """The smallest service the Engine API would ask for."""
        spec = api.ServiceSpec(annotations=api.Annotations(name=name))
        spec.task.container.image = image
        spec.replicated.replicas = replicas
        return spec


def _service(service_id: str, spec: api.ServiceSpec) -> api.Service:
    return api.Service(id=service_id, spec=spec, spec_version=api.Version())


@pytest.fixture
def control() -> ControlHarness:
    """Services full, glob and min; a secret, a config, networks; nodes n1 (manager) and n2; the cluster."""
    control = ControlHarness()
    control.store.apply([], 10)
    full = control.service_spec("full")
    full.task.container.secrets.add(secret_id="s1", secret_name="sec1").file.name = "sec1"
    full.task.container.configs.add(config_id="c1", config_name="cfg1").file.name = "cfg1"
    full.task.networks.add(target="net1")
    full.endpoint.ports.add(target_port=80, published_port=8080)
    glob = control.service_spec("glob")
    glob.ClearField("replicated")
    getattr(glob, "global").SetInParent()
    glob.endpoint.ports.add(target_port=80, published_port=9090, publish_mode=api.PortConfig.HOST)
    cluster = api.Cluster(id="cl", spec=api.ClusterSpec(annotations=api.Annotations(name="default")))
    cluster.root_ca.ca_cert = control.root.bundle_pem
    cluster.root_ca.ca_key = control.root.key_pem or b""
    cluster.root_ca.join_tokens.worker = new_join_token(control.root.bundle_pem, control.rng)
    cluster.root_ca.join_tokens.manager = new_join_token(control.root.bundle_pem, control.rng)
    control.put(
        cluster,
        api.Secret(id="s1", spec=api.SecretSpec(annotations=api.Annotations(name="sec1"), data=b"x")),
        api.Config(id="c1", spec=api.ConfigSpec(annotations=api.Annotations(name="cfg1"), data=b"x")),
        api.Network(id="ingr", spec=api.NetworkSpec(annotations=api.Annotations(name="ingress"), ingress=True)),
        api.Network(id="net1", spec=api.NetworkSpec(annotations=api.Annotations(name="ov1"))),
        api.Network(
            id="nhost",
            spec=api.NetworkSpec(
                annotations=api.Annotations(name="host", labels={"com.docker.swarm.predefined": "true"}),
                driver_config=api.Driver(name="host"),
            ),
        ),
        _service("svcfull", full),
        _service("svcglob", glob),
        _service("svcmin", control.service_spec("min")),
        _node("n1", api.MANAGER),
        _node("n2", api.WORKER),
    )
    control.group.members["n1"] = api.ManagerStatus(
        raft_id=7, addr="10.0.0.1:2377", leader=True, reachability=api.RaftMemberStatus.REACHABLE
    )
    control.group.removable.append("n2")
    return control


def _node(node_id: str, role: int) -> api.Node:
    node = api.Node(id=node_id, role=role)  # type: ignore[arg-type]
    node.spec.desired_role = role  # type: ignore[assignment]
    node.spec.membership = api.NodeSpec.ACCEPTED
    node.description.hostname = f"host-{node_id}"
    node.status.state = api.NodeStatus.READY
    return node
