"""Lists: filters equal a naive reading of their rules, and every list is in ascending order of IDs."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm import api
from swarm.errors import SwarmError
from swarm.manager.controlapi.methods import CONTROL
from swarm.manager.controlapi.methods import control as control_methods
from swarm.store.store import Store, pack
from tests.swarm.manager.fake_members import FakeMembers

_NAMES = st.sampled_from(["a", "ab", "abc", "b", "B", "Ab"])
_PREFIXES = st.lists(st.sampled_from(["a", "ab", "b", "B", ""]), max_size=2)
_LABELS = st.dictionaries(st.sampled_from(["k", "l"]), st.sampled_from(["", "1", "2"]), max_size=2)
_IDS = ["a1", "a2", "b1", "b2", "c1"]
_STATES = [api.READY, api.RUNNING, api.SHUTDOWN]


def _store(objects: list[Any]) -> Store:
    store = Store()
    store.apply([pack(api.STORE_ACTION_CREATE, obj) for obj in objects], 1)
    return store


def _listed(store: Store, method: str, filters: Any, field: str) -> list[str]:
    request = getattr(api, f"{method}Request")(filters=filters)
    response = CONTROL[f"Control/{method}"].function(store, request)
    return [obj.id for obj in getattr(response, field)]


def _labels_match(have: Any, wanted: Any) -> bool:
    return all(key in have and (value == "" or have[key] == value) for key, value in wanted.items())


def _common(filters: Any, object_id: str, name: str, labels: Any) -> bool:
    return (
        (not filters.names or name in filters.names)
        and (not filters.name_prefixes or any(name.startswith(p) for p in filters.name_prefixes))
        and (not filters.id_prefixes or any(object_id.startswith(p) for p in filters.id_prefixes))
        and _labels_match(labels, filters.labels)
    )


@st.composite
def _annotated(draw: st.DrawFn) -> list[tuple[str, api.Annotations]]:
    ids = draw(st.permutations(_IDS))[: draw(st.integers(0, len(_IDS)))]
    names = draw(st.lists(_NAMES, min_size=len(ids), max_size=len(ids), unique_by=str.lower)) if len(ids) <= 4 else []
    return [(i, api.Annotations(name=n, labels=draw(_LABELS))) for i, n in zip(ids, names, strict=False)]


@st.composite
def _filters(draw: st.DrawFn, cls: Any) -> Any:
    return cls(
        names=draw(st.lists(_NAMES, max_size=2)),
        name_prefixes=draw(_PREFIXES),
        id_prefixes=draw(st.lists(st.sampled_from(["a", "b", "a1", "x"]), max_size=2)),
        labels=draw(_LABELS),
    )


@settings(max_examples=200, deadline=None)
@given(
    _annotated(),
    _filters(api.ListServicesRequest.Filters),
    st.lists(st.sampled_from(["container", "plugin"]), max_size=2),
)
def test_lists_of_services_equal_a_naive_filter(
    annotated: list[tuple[str, api.Annotations]], filters: Any, runtimes: list[str]
) -> None:
    services = [api.Service(id=i, spec=api.ServiceSpec(annotations=a)) for i, a in annotated]
    for number, service in enumerate(services):
        if number % 2:
            service.spec.task.generic.kind = "Plugin"
        else:
            service.spec.task.container.image = "x"
    filters.runtimes.extend(runtimes)
    wanted = [
        s.id
        for s in sorted(services, key=lambda s: s.id)
        if _common(filters, s.id, s.spec.annotations.name, s.spec.annotations.labels)
        and (not runtimes or ("plugin" if s.spec.task.HasField("generic") else "container") in runtimes)
    ]
    assert _listed(_store(services), "ListServices", filters, "services") == wanted


@settings(max_examples=200, deadline=None)
@given(_annotated(), _filters(api.ListSecretsRequest.Filters))
def test_lists_of_secrets_and_configs_take_names_and_ids_as_alternatives(
    annotated: list[tuple[str, api.Annotations]], filters: Any
) -> None:
    def wanted(object_id: str, a: api.Annotations) -> bool:
        alternatives = [
            *(a.name.lower() == n.lower() for n in filters.names),
            *(a.name.lower().startswith(p.lower()) for p in filters.name_prefixes),
            *(object_id.startswith(p) for p in filters.id_prefixes),
        ]
        return (not alternatives or any(alternatives)) and _labels_match(a.labels, filters.labels)

    expected = [i for i, a in sorted(annotated, key=lambda pair: pair[0]) if wanted(i, a)]
    secrets = [api.Secret(id=i, spec=api.SecretSpec(annotations=a)) for i, a in annotated]
    assert _listed(_store(secrets), "ListSecrets", filters, "secrets") == expected
    configs = [api.Config(id=i, spec=api.ConfigSpec(annotations=a)) for i, a in annotated]
    alike = api.ListConfigsRequest.Filters.FromString(filters.SerializeToString())
    assert _listed(_store(configs), "ListConfigs", alike, "configs") == expected


@st.composite
def _tasks(draw: st.DrawFn) -> list[api.Task]:
    tasks = []
    for number in range(draw(st.integers(0, 8))):
        task = api.Task(
            id=f"{draw(st.sampled_from('abc'))}{9 - number}",
            service_id=draw(st.sampled_from(["s1", "s2", ""])),
            node_id=draw(st.sampled_from(["n1", "n2", ""])),
            desired_state=draw(st.sampled_from(_STATES)),
            slot=draw(st.integers(0, 1)),
            service_annotations=api.Annotations(name=draw(_NAMES), labels=draw(_LABELS)),
        )
        if draw(st.booleans()):
            task.spec.container.image = "x"
        elif draw(st.booleans()):
            task.spec.attachment.container_id = "x"
        tasks.append(task)
    return tasks


@settings(max_examples=200, deadline=None)
@given(
    _tasks(),
    _filters(api.ListTasksRequest.Filters),
    st.lists(st.sampled_from(["s1", "s2", "", "s3"]), max_size=2),
    st.lists(st.sampled_from(["n1", "n2", ""]), max_size=2),
    st.lists(st.sampled_from(_STATES), max_size=2),
    st.lists(st.sampled_from(["container", "attachment"]), max_size=2),
)
def test_lists_of_tasks_equal_a_naive_filter(
    tasks: list[api.Task], filters: Any, services: list[str], nodes: list[str], states: list[int], runtimes: list[str]
) -> None:
    del filters.names[:]
    filters.service_ids.extend(services)
    filters.node_ids.extend(nodes)
    filters.desired_states.extend(states)
    filters.runtimes.extend(runtimes)
    wanted = [
        t.id
        for t in sorted(tasks, key=lambda t: t.id)
        if _common(
            filters,
            t.id,
            f"{t.service_annotations.name}.{t.slot or t.node_id}.{t.id}",
            t.service_annotations.labels,
        )
        and (not services or t.service_id in services)
        and (not nodes or t.node_id in nodes)
        and (not states or t.desired_state in states)
        and (not runtimes or (t.spec.WhichOneof("runtime") or "-") in runtimes)
    ]
    assert _listed(_store(tasks), "ListTasks", filters, "tasks") == wanted


@settings(max_examples=200, deadline=None)
@given(
    _annotated(),
    _filters(api.ListNodesRequest.Filters),
    _LABELS,
    st.lists(st.sampled_from([api.WORKER, api.MANAGER]), max_size=2),
    st.lists(st.sampled_from([api.NodeSpec.PENDING, api.NodeSpec.ACCEPTED]), max_size=2),
)
def test_lists_of_nodes_equal_a_naive_filter(
    annotated: list[tuple[str, api.Annotations]], filters: Any, labels: Any, roles: list[int], memberships: list[int]
) -> None:
    nodes = []
    for number, (object_id, given_to_it) in enumerate(annotated):
        node = api.Node(id=object_id, role=api.MANAGER if number % 2 else api.WORKER)
        node.spec.membership = api.NodeSpec.ACCEPTED if number % 3 else api.NodeSpec.PENDING
        node.spec.annotations.labels.update(given_to_it.labels)
        if number != 0:
            node.description.hostname = given_to_it.name
            node.description.engine.labels.update(given_to_it.labels)
        nodes.append(node)
    filters.node_labels.update(labels)
    filters.roles.extend(roles)
    filters.memberships.extend(memberships)

    def wanted(node: api.Node) -> bool:
        unnamed = not node.HasField("description")
        if unnamed and (filters.names or filters.name_prefixes):
            return False
        return (
            _common(filters, node.id, node.description.hostname, node.description.engine.labels)
            and _labels_match(node.spec.annotations.labels, labels)
            and (not roles or node.role in roles)
            and (not memberships or node.spec.membership in memberships)
        )

    request = api.ListNodesRequest(filters=filters)
    listed = control_methods(FakeMembers())["Control/ListNodes"].function(_store(nodes), request)
    assert [n.id for n in listed.nodes] == sorted(n.id for n in nodes if wanted(n))  # type: ignore[attr-defined]


def test_up_to_date_keeps_tasks_that_fit_the_spec_of_a_living_service(control: Any) -> None:
    service = control.store.get(api.Service, "svcmin")
    for task_id, service_id, image, index in (
        ("t1", "svcmin", "busybox:latest", 5),
        ("t2", "svcmin", "other", 5),
        ("t3", "gone", "busybox:latest", 5),
        ("t4", "svcmin", "other", service.spec_version.index),
    ):
        task = api.Task(id=task_id, service_id=service_id, spec_version=api.Version(index=index))
        task.spec.container.image = image
        control.put(task)
    filters = api.ListTasksRequest.Filters(up_to_date=True)
    assert _listed(control.store, "ListTasks", filters, "tasks") == ["t1", "t4"]


def test_volumes_and_resources_are_filtered_by_their_own_keys(control: Any) -> None:
    for object_id, group, driver in (("v1", "g1", "d1"), ("v2", "g2", "d1"), ("v3", "g1", "d2")):
        spec = api.VolumeSpec(annotations=api.Annotations(name=object_id), group=group, driver=api.Driver(name=driver))
        control.put(api.Volume(id=object_id, spec=spec))
    filters = api.ListVolumesRequest.Filters(groups=["g1"], drivers=["d1", "d3"])
    assert _listed(control.store, "ListVolumes", filters, "volumes") == ["v1"]
    control.put(
        api.Resource(id="r1", kind="k1", annotations=api.Annotations(name="one")),
        api.Resource(id="r2", kind="k2", annotations=api.Annotations(name="two")),
    )
    kind = api.ListResourcesRequest.Filters(kind="k2")
    assert _listed(control.store, "ListResources", kind, "resources") == ["r2"]
    either = api.ListResourcesRequest.Filters(names=["ONE"], id_prefixes=["r2"])
    assert _listed(control.store, "ListResources", either, "resources") == ["r1", "r2"]


def test_a_list_is_the_same_inside_a_pass(control: Any) -> None:
    tx = control.tx()
    tx.create(api.Config(id="c0", spec=api.ConfigSpec(annotations=api.Annotations(name="new"))))
    response = control.table["Control/ListConfigs"].function(tx, api.ListConfigsRequest())
    assert [config.id for config in response.configs] == ["c0", "c1"]


def test_secrets_made_by_the_cluster_are_not_listed(control: Any) -> None:
    control.put(api.Secret(id="s2", internal=True, spec=api.SecretSpec(annotations=api.Annotations(name="own"))))
    assert _listed(control.store, "ListSecrets", api.ListSecretsRequest.Filters(), "secrets") == ["s1"]


def test_extensions_and_their_resources_are_kept(control: Any) -> None:
    request = api.CreateExtensionRequest(annotations=api.Annotations(name="gadgets"), description="d")
    extension = control.call("CreateExtension", request).extension
    assert control.refused("CreateExtension", request) == "AlreadyExists: extension gadgets already exists"
    wanted = api.CreateResourceRequest(annotations=api.Annotations(name="one"), kind="nosuch")
    assert control.refused("CreateResource", wanted) == "InvalidArgument: Kind nosuch is not registered"
    wanted.kind = extension.id
    wanted.payload.value = b"p"
    resource = control.call("CreateResource", wanted).resource
    assert control.call("GetResource", api.GetResourceRequest(resource_id=resource.id)).resource == resource
    assert control.refused("CreateResource", wanted) == "AlreadyExists: A resource with name one already exists"
    in_use = "extension 'gadgets' is in use by the following resource: one"
    removal = api.RemoveExtensionRequest(extension_id=extension.id)
    assert control.refused("RemoveExtension", removal) == f"InvalidArgument: {in_use}"
    change = api.UpdateResourceRequest(resource_id=resource.id, resource_version=api.Version(index=1))
    assert control.refused("UpdateResource", change) == "InvalidArgument: update out of sequence"
    change.resource_version.CopyFrom(resource.meta.version)
    change.annotations.name = "two"
    assert control.refused("UpdateResource", change) == "InvalidArgument: cannot change resource name"
    change.annotations.name = "one"
    change.annotations.labels["k"] = "v"
    changed = control.call("UpdateResource", change).resource
    assert (changed.payload.value, dict(changed.annotations.labels)) == (b"p", {"k": "v"})
    control.call("RemoveResource", api.RemoveResourceRequest(resource_id=resource.id))
    control.call("RemoveExtension", removal)
    assert control.store.count(api.Extension) == 0


def test_cluster_volumes_are_checked_and_refused(control: Any) -> None:
    spec = api.VolumeSpec()
    request = api.CreateVolumeRequest(spec=spec)
    for text, change in (
        ("driver must be specified", {"driver": api.Driver(name="csi")}),
        ("meta: name must be provided", {"annotations": api.Annotations(name="vol")}),
        ("AccessMode must not be nil", {"access_mode": api.VolumeAccessMode()}),
        (
            "Volume AccessMode must specify either Mount or Block access type",
            {"access_mode": api.VolumeAccessMode(mount=api.VolumeAccessMode.MountVolume())},
        ),
    ):
        assert control.refused("CreateVolume", request) == f"InvalidArgument: {text}"
        request.spec.MergeFrom(api.VolumeSpec(**change))
    request.spec.secrets.add(key="k", secret="nosuch")
    assert control.refused("CreateVolume", request) == "InvalidArgument: secret not found: nosuch"
    del request.spec.secrets[:]
    assert control.refused("CreateVolume", request).startswith('Unimplemented: creating the cluster volume "vol"')


def test_only_labels_and_availability_of_a_volume_change(control: Any) -> None:
    spec = api.VolumeSpec(annotations=api.Annotations(name="vol"), driver=api.Driver(name="csi"), group="g")
    control.put(api.Volume(id="v1", spec=spec))
    request = api.UpdateVolumeRequest(volume_id="v1", volume_version=control.version(api.Volume, "v1"), spec=spec)
    request.spec.group = "h"
    assert control.refused("UpdateVolume", request) == "InvalidArgument: Group cannot be updated"
    request.spec.group = "g"
    request.spec.availability = api.VolumeSpec.DRAIN
    request.spec.annotations.labels["k"] = "v"
    changed = control.call("UpdateVolume", request).volume
    assert (changed.spec.availability, dict(changed.spec.annotations.labels)) == (api.VolumeSpec.DRAIN, {"k": "v"})
    with pytest.raises(SwarmError, match="update out of sequence"):
        control.call("UpdateVolume", request)
    control.call("RemoveVolume", api.RemoveVolumeRequest(volume_id="v1"))
    assert control.store.get(api.Volume, "v1").pending_delete
    control.call("RemoveVolume", api.RemoveVolumeRequest(volume_id="v1", force=True))
    assert control.store.get(api.Volume, "v1") is None


def test_a_network_is_stored_as_the_user_wants_it(control: Any) -> None:
    spec = api.NetworkSpec(
        annotations=api.Annotations(name="new", labels={"a": "b"}),
        driver_config=api.Driver(name="overlay", options={"encrypted": ""}),
        attachable=True,
        internal=True,
        ipam=api.IPAMOptions(
            driver=api.Driver(name="default"),
            configs=[api.IPAMConfig(subnet="10.44.0.0/24", gateway="10.44.0.1", range="10.44.0.128/25")],
        ),
    )
    made = control.call("CreateNetwork", api.CreateNetworkRequest(spec=spec)).network
    assert control.call("GetNetwork", api.GetNetworkRequest(network_id=made.id)).network == made
    assert made.spec == spec


@pytest.mark.parametrize("name", ["ov1", "OV1", "host", "ingress"])
def test_two_networks_have_no_name_together(control: Any, name: str) -> None:
    spec = api.NetworkSpec(annotations=api.Annotations(name=name), driver_config=api.Driver(name="overlay"))
    refused = control.refused("CreateNetwork", api.CreateNetworkRequest(spec=spec))
    assert refused == f"AlreadyExists: name conflicts with an existing object: network {name} already exists"


def test_a_removed_ingress_network_can_be_made_again_with_another_name(control: Any) -> None:
    control.call("RemoveService", api.RemoveServiceRequest(service_id="svcfull"))
    control.call("RemoveNetwork", api.RemoveNetworkRequest(network_id="ingr"))
    spec = api.NetworkSpec(annotations=api.Annotations(name="mesh"), ingress=True)
    made = control.call("CreateNetwork", api.CreateNetworkRequest(spec=spec)).network
    spec.annotations.name = "mesh2"
    refused = control.refused("CreateNetwork", api.CreateNetworkRequest(spec=spec))
    assert refused == f"AlreadyExists: ingress network ({made.id}) is already present"


def test_predefined_networks_stay(control: Any) -> None:
    refused = control.refused("RemoveNetwork", api.RemoveNetworkRequest(network_id="nhost"))
    assert refused == "FailedPrecondition: network nhost (host) is a swarm predefined network and cannot be removed"


def test_a_network_can_go_once_nothing_that_may_run_uses_it(control: Any) -> None:
    control.call("RemoveService", api.RemoveServiceRequest(service_id="svcfull"))
    task = api.Task(id="t1", desired_state=api.RUNNING)
    task.status.state = api.STARTING
    task.networks.add().network.id = "net1"
    control.put(task)
    removal = api.RemoveNetworkRequest(network_id="net1")
    assert control.refused("RemoveNetwork", removal) == "FailedPrecondition: network net1 is in use by task t1"
    tx = control.tx()
    tx.edit(api.Task, "t1").status.state = api.FAILED
    control.commit(tx)
    control.call("RemoveNetwork", removal)
    assert control.store.get(api.Network, "net1") is None


def test_ingress_goes_when_nobody_publishes_through_it(control: Any) -> None:
    control.call("RemoveService", api.RemoveServiceRequest(service_id="svcfull"))
    control.call("RemoveNetwork", api.RemoveNetworkRequest(network_id="ingr"))
    assert control.store.get(api.Network, "ingr") is None
