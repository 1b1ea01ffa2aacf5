"""From tasks to what the engine is asked for; a stock engine made the golden container for the golden service."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine_api.convert.service import SERVICE
from engine_api.executor import container, templates
from engine_api.executor.container import Endpoint, PayloadFile
from engine_api.executor.errors import TaskError
from swarm import api

GOLDEN = Path(__file__).parents[2] / "golden" / "stock-20.10" / "api"
NODE = api.NodeDescription(hostname="node1", platform=api.Platform(architecture="x86_64", os="linux"))


def golden(name: str) -> Any:
    return json.loads((GOLDEN / f"{name}.json").read_text())


def golden_task() -> api.Task:
    """The task for which a stock engine made the container in container_full.json."""
    service = api.Service()
    SERVICE.fill(service, SERVICE.parse(golden("service_full")))
    task = api.Task(id="e8g0vzjzw5wogfmjb7iugqgqs", slot=2, node_id="9sajldf3ee308yb7sb2mislv5", service_id=service.id)
    task.spec.CopyFrom(service.spec.task)
    task.service_annotations.CopyFrom(service.spec.annotations)
    task.endpoint.CopyFrom(service.endpoint)
    task.log_driver.CopyFrom(service.spec.task.log_driver)
    return task


def body_of(task: api.Task, **more: Any) -> dict[str, Any]:
    body = container.create_body(task, templates.container_spec(task, NODE), **more)
    json.dumps(body)
    return body


def make_task(**spec: Any) -> api.Task:
    task = api.Task(id="t1", slot=1, node_id="n1", service_id="s1")
    task.service_annotations.name = "web"
    task.spec.container.CopyFrom(api.ContainerSpec(image="busybox", **spec))
    return task


def plain(value: Any) -> Any:
    """Without what is empty: engines write null, [], {} and "" for the same thing."""
    if isinstance(value, dict):
        return {key: kept for key, entry in value.items() if (kept := plain(entry)) not in (None, "", [], {}, False, 0)}
    return [plain(entry) for entry in value] if isinstance(value, list) else value


def test_the_container_is_the_one_a_stock_engine_makes() -> None:
    ours, theirs = body_of(golden_task()), golden("container_full")
    assert container.container_name(golden_task()) == theirs["Name"].lstrip("/")
    host, expected = ours.pop("HostConfig"), theirs["HostConfig"]
    for key, value in ours.items():
        if key != "NetworkingConfig":
            assert plain({key: value}) == plain({key: theirs["Config"][key]})
    for key, value in host.items():
        if key != "Mounts":
            assert plain({key: value}) == plain({key: expected[key]})
    assert [plain(mount) for mount in host["Mounts"]] == [plain(mount) for mount in expected["Mounts"]]


def test_lists_that_are_not_used_are_null_for_the_engine_as_inspect_shows_them() -> None:
    host = body_of(make_task())["HostConfig"]
    unused = ("CapAdd", "CapDrop", "Dns", "DnsOptions", "DnsSearch", "ExtraHosts", "GroupAdd", "SecurityOpt")
    assert {key: host[key] for key in unused} == dict.fromkeys(unused)


def test_a_task_without_a_slot_is_named_after_its_node() -> None:
    task = make_task()
    task.slot = 0
    assert container.container_name(task) == "web.n1.t1"
    task.annotations.name = "given"
    assert container.container_name(task) == "given"


def test_system_labels_win() -> None:
    task = make_task(labels={"com.docker.swarm.task.id": "forged", "a": "b"})
    assert container.labels(task, task.spec.container) == {
        "a": "b",
        "com.docker.swarm.task": "",
        "com.docker.swarm.task.id": "t1",
        "com.docker.swarm.task.name": "web.1.t1",
        "com.docker.swarm.node.id": "n1",
        "com.docker.swarm.service.id": "s1",
        "com.docker.swarm.service.name": "web",
    }


def test_arguments_alone_are_the_command_and_a_command_replaces_the_entrypoint() -> None:
    assert "Cmd" not in body_of(make_task())
    only_args = body_of(make_task(args=["a"]))
    assert (only_args["Cmd"], only_args.get("Entrypoint")) == (["a"], None)
    both = body_of(make_task(command=["sh"]))
    assert (both["Cmd"], both["Entrypoint"]) == ([], ["sh"])


@pytest.mark.parametrize(
    ("swap", "expected"), [(None, None), (-1, -1), (0, 1000), (500, 1500)], ids=["default", "unlimited", "none", "some"]
)
def test_swap_is_counted_beside_memory(swap: int | None, expected: int | None) -> None:
    task = make_task()
    task.spec.resources.limits.memory_bytes = 1000
    if swap is not None:
        task.spec.resources.swap_bytes.value = swap
    task.spec.resources.memory_swappiness.value = 0
    host = body_of(task)["HostConfig"]
    assert (host["Memory"], host.get("MemorySwap"), host["MemorySwappiness"]) == (1000, expected, 0)


def test_without_limits_the_engine_decides() -> None:
    task = make_task()
    task.spec.resources.swap_bytes.value = 5
    assert not {"Memory", "MemorySwap", "NanoCpus", "PidsLimit", "Init"} & set(body_of(task)["HostConfig"])


def test_generic_resources_become_variables() -> None:
    task = make_task(env=["A=1", "B"])
    for value in ("u1", "u2"):
        task.assigned_generic_resources.add().named_resource_spec.CopyFrom(
            api.NamedGenericResource(kind="gpu", value=value)
        )
    discrete = api.DiscreteGenericResource(kind="ssd", value=3)
    task.assigned_generic_resources.add().discrete_resource_spec.CopyFrom(discrete)
    assert body_of(task)["Env"] == ["A=1", "B", "DOCKER_RESOURCE_GPU=u1,u2", "DOCKER_RESOURCE_SSD=3"]


def test_only_host_ports_are_bound_by_the_engine() -> None:
    task = make_task()
    host = api.PortConfig.HOST
    task.endpoint.ports.add(target_port=53, published_port=5353, publish_mode=host, protocol=api.PortConfig.UDP)
    task.endpoint.ports.add(target_port=80, publish_mode=host)
    task.endpoint.ports.add(target_port=70000, publish_mode=host)
    task.endpoint.ports.add(target_port=81, published_port=8081)
    body = body_of(task)
    assert body["HostConfig"]["PortBindings"] == {"53/udp": [{"HostPort": "5353"}], "80/tcp": [{}]}
    assert body["ExposedPorts"] == {"53/udp": {}, "80/tcp": {}}


def test_privileges_become_security_options() -> None:
    task = make_task()
    privileges = task.spec.container.privileges
    privileges.credential_spec.registry = "key"
    privileges.selinux_context.CopyFrom(
        api.Privileges.SELinuxContext(disable=True, user="u", role="r", level="l", type="t")
    )
    privileges.seccomp.CopyFrom(api.Privileges.SeccompOpts(mode=api.Privileges.SeccompOpts.CUSTOM, profile=b"{}"))
    privileges.apparmor.mode = api.Privileges.AppArmorOpts.DISABLED
    privileges.no_new_privileges = True
    assert body_of(task)["HostConfig"]["SecurityOpt"] == [
        "credentialspec=registry://key",
        "label=disable",
        "label=user:u",
        "label=role:r",
        "label=level:l",
        "label=type:t",
        "seccomp={}",
        "apparmor=unconfined",
        "no-new-privileges=true",
    ]
    privileges.seccomp.mode = api.Privileges.SeccompOpts.UNCONFINED
    assert "seccomp=unconfined" in body_of(task)["HostConfig"]["SecurityOpt"]


def test_mount_options_are_carried_over() -> None:
    task = make_task(
        mounts=[
            api.Mount(
                source="/a", target="/b", bind_options=api.Mount.BindOptions(propagation=api.Mount.BindOptions.RSLAVE)
            ),
            api.Mount(
                type=api.Mount.VOLUME, source="v", target="/v", volume_options=api.Mount.VolumeOptions(subpath="s")
            ),
            api.Mount(type=api.Mount.TMPFS, target="/t", tmpfs_options=api.Mount.TmpfsOptions(options='[["exec"]]')),
            api.Mount(type=api.Mount.TMPFS, target="/u", tmpfs_options=api.Mount.TmpfsOptions(options="nonsense")),
        ]
    )
    mounts = body_of(task)["HostConfig"]["Mounts"]
    assert (mounts[0]["Type"], mounts[0]["BindOptions"]["Propagation"]) == ("bind", "rslave")
    assert mounts[1]["VolumeOptions"]["Subpath"] == "s"
    assert mounts[2]["TmpfsOptions"]["Options"] == [["exec"]]
    assert "Options" not in mounts[3]["TmpfsOptions"]


def test_only_volumes_with_a_driver_are_made_beforehand() -> None:
    spec = api.ContainerSpec()
    spec.mounts.add(type=api.Mount.VOLUME, source="plain", target="/a")
    spec.mounts.add(type=api.Mount.VOLUME, target="/b").volume_options.driver_config.name = "local"
    named = spec.mounts.add(type=api.Mount.VOLUME, source="named", target="/c")
    named.volume_options.driver_config.CopyFrom(api.Driver(name="nfs", options={"o": "addr"}))
    assert container.volume_requests(spec) == [
        {"Name": "named", "Driver": "nfs", "DriverOpts": {"o": "addr"}, "Labels": {}}
    ]


REFUSED = [
    (api.Mount(type=api.Mount.VOLUME, target="x"), "invalid mount target, must be an absolute path: x"),
    (api.Mount(source="a", target="/x"), "invalid bind mount source, must be an absolute path: a"),
    (
        api.Mount(type=api.Mount.VOLUME, source="/a", target="/x"),
        "invalid volume mount source, must not be an absolute path: /a",
    ),
    (api.Mount(type=api.Mount.TMPFS, source="a", target="/x"), "invalid tmpfs source, source must be empty"),
    (api.Mount(type=api.Mount.NPIPE, target="x"), "invalid npipe source, source must not be empty"),
    (api.Mount(type=api.Mount.CLUSTER, source="c", target="/x"), "no CSI plugins"),
]


@pytest.mark.parametrize(("mount", "text"), REFUSED)
def test_a_mount_that_means_something_else_is_refused(mount: api.Mount, text: str) -> None:
    with pytest.raises(TaskError) as caught:
        container.check_mounts([mount])
    assert text in caught.value.message


def test_good_mounts_pass() -> None:
    container.check_mounts([api.Mount(source="/a", target="/b"), api.Mount(type=api.Mount.TMPFS, target="/t")])


def test_only_containers_with_an_image_can_run() -> None:
    container.check_runtime(make_task())
    no_image, attachment, plugin, other = make_task(), api.Task(), api.Task(), api.Task()
    no_image.spec.container.image = ""
    attachment.spec.attachment.container_id = "c"
    plugin.spec.generic.kind = "plugin"
    other.spec.generic.kind = "VM"
    texts = []
    for task in (no_image, attachment, plugin, other, api.Task()):
        with pytest.raises(TaskError) as caught:
            container.check_runtime(task)
        texts.append(caught.value.message)
    assert texts == [
        "dockerexec: image required",
        "exec: unsupported runtime",
        'runtime type "plugin" only supported in experimental',
        'unsupported runtime type: "vm"',
        "exec: unsupported runtime",
    ]


def network(name: str, **labels: str) -> api.NetworkAttachment:
    attachment = api.NetworkAttachment()
    attachment.network.spec.annotations.CopyFrom(api.Annotations(name=name, labels=labels))
    return attachment


def test_networks_of_the_engine_are_used_by_name_and_those_of_the_cluster_by_endpoint() -> None:
    assert body_of(make_task())["HostConfig"]["NetworkMode"] == "default"
    on_host = make_task()
    predefined = {container.LABEL_PREDEFINED: "true"}
    on_host.networks.append(network("host", **predefined))
    assert body_of(on_host)["HostConfig"]["NetworkMode"] == "host"
    assert container.service_networks(on_host) == []
    overlay = make_task()
    overlay.networks.append(network("ov1"))
    assert container.service_networks(overlay) == [overlay.networks[0]]
    settings = {"IPAMConfig": {"IPv4Address": "10.0.1.3"}}
    body = body_of(overlay, endpoints=[Endpoint("ov1", settings)], dns=["10.0.1.1"])
    assert body["HostConfig"]["NetworkMode"] == "ov1"
    assert body["HostConfig"]["Dns"] == ["10.0.1.1"]
    assert body["NetworkingConfig"]["EndpointsConfig"] == {"ov1": settings}


def reference(name: str, uid: str = "0", gid: str = "0", mode: int = 0o444) -> api.SecretReference:
    return api.SecretReference(secret_id=f"id-{name}", file=api.FileTarget(name=name, uid=uid, gid=gid, mode=mode))


def test_secrets_and_configs_become_files_where_users_expect_them() -> None:
    spec = api.ContainerSpec(secrets=[reference("a"), reference("/b/c", "1", "2", 0o4600), reference("../d")])
    spec.configs.add(config_id="c1").file.CopyFrom(api.FileTarget(name="e", uid="0", gid="0", mode=0o400))
    spec.configs.add(config_id="c2").runtime.SetInParent()
    spec.configs.add(config_id="c3")
    files = container.payload_files(spec, "/state/t1", str.encode, str.encode)
    assert files == [
        PayloadFile("/state/t1/secret-0", "/run/secrets/a", 0, 0, 0o444, b"id-a"),
        PayloadFile("/state/t1/secret-1", "/b/c", 1, 2, 0o600, b"id-/b/c"),
        PayloadFile("/state/t1/secret-2", "/run/d", 0, 0, 0o444, b"id-../d"),
        PayloadFile("/state/t1/config-0", "/e", 0, 0, 0o400, b"c1"),
    ]
    assert "id-a" not in repr(files[0]).replace("secret-0", "")
    mount = body_of(make_task(), files=files)["HostConfig"]["Mounts"][0]
    assert mount == {"Type": "bind", "Source": "/state/t1/secret-0", "Target": "/run/secrets/a", "ReadOnly": True}


@pytest.mark.parametrize("owner", ["root", "", "-1", "4294967296"])
def test_an_owner_that_is_not_a_number_is_refused(owner: str) -> None:
    spec = api.ContainerSpec(secrets=[reference("a", uid=owner)])
    with pytest.raises(TaskError, match=r'strconv.Atoi: parsing ".*": invalid syntax'):
        container.payload_files(spec, "/d", str.encode, str.encode)
