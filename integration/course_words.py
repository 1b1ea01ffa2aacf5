"""What a step of the course is, and the words that steps are made of."""

from __future__ import annotations

from dataclasses import dataclass

RUN = """sh -c 'trap "exit 0" TERM; sleep 9999 & wait'"""
TALK = """sh -c 'trap "exit 0" TERM; echo out; sleep 0.3; echo err >&2; sleep 9999 & wait'"""
QUICK = "--update-monitor 1s"
PS = "--format '{{.Name}} {{.Image}} {{.DesiredState}} {{.CurrentState}} {{.Error}}'"
EVENT = "--format '{{.Scope}} {{.Type}} {{.Action}} {{json .Actor.Attributes}}'"
PLACED = "--format '{{.Name}} {{.Node}} {{.DesiredState}}'"
FULL = (
    "--name full --replicas 2 --label l1=v1 --container-label cl=cv --env FOO=bar --env NODE={{.Node.Hostname}} "
    "--workdir /tmp --user root --group 1000 --hostname h-{{.Task.Slot}} --cap-add NET_ADMIN --cap-drop CHOWN "
    "--limit-cpu 0.5 --limit-memory 64m --reserve-cpu 0.01 --reserve-memory 8m --limit-pids 50 "
    "--stop-grace-period 3s --stop-signal SIGTERM --replicas-max-per-node 2 --restart-condition on-failure "
    "--restart-delay 2s --restart-max-attempts 3 --restart-window 30s --update-parallelism 2 --update-delay 1s "
    "--update-monitor 1s --update-failure-action rollback --update-max-failure-ratio 0.25 --update-order start-first "
    "--rollback-parallelism 0 --rollback-delay 1s --rollback-monitor 2s --rollback-failure-action continue "
    "--rollback-max-failure-ratio 0.5 --rollback-order start-first --endpoint-mode vip --log-driver json-file "
    "--log-opt max-size=1m --health-cmd true --health-interval 1s --health-timeout 1s --health-retries 2 "
    "--health-start-period 1s --read-only --isolation default "
    "--mount type=tmpfs,dst=/t,tmpfs-size=1m,tmpfs-mode=1770 "
    "--mount type=volume,src=v-{{.Task.Slot}},dst=/data,volume-label=a=b,volume-driver=local,volume-nocopy "
    "--mount type=bind,src=/usr/share,dst=/hostshare,ro,bind-propagation=rprivate "
    "--constraint node.hostname!=nope --constraint node.labels.zone!=b --placement-pref spread=node.labels.zone "
    "--secret source=sec2,target=/run/s2,uid=1,gid=2,mode=0400 "
    "--config source=cfgt,target=/etc/c.conf,mode=0440 --publish mode=host,target=53,published=5353,protocol=udp "
    "--dns 1.1.1.1 --dns-option ndots:2 --dns-search ex.org --host a.b:1.2.3.4 --init "
    "--sysctl net.core.somaxconn=99 --ulimit nofile=100:200"
)

API: tuple[tuple[str, ...], ...] = (
    ("/swarm", "members"),
    ("/nodes", "members"),
    ("/nodes/node2",),
    ("/services", "members"),
    ("/services?status=true", "members"),
    ("/services/full?insertDefaults=true",),
    ("/tasks", "members"),
    ("/secrets", "members"),
    ("/configs", "members"),
    ("/secrets/sec1",),
    ("/configs/cfgt",),
    ("/info", "members"),
    ("/containers/json", "members"),
    ("/services/nosuch",),
    ("/tasks/nosuch",),
    ("/swarm/unlockkey",),
)
COMPOSE = """
version: "3.8"
services:
  web:
    image: busybox
    command: ["sh", "-c", "trap 'exit 0' TERM; sleep 9999 & wait"]
    environment: {A: b}
    labels: {cl: cv}
    secrets: [s1]
    configs: [{source: c1, target: /c1}]
    deploy:
      replicas: 2
      labels: {sl: sv}
      restart_policy: {condition: on-failure, delay: 1s}
      resources: {limits: {memory: 32M}}
  agent:
    image: busybox
    command: ["sh", "-c", "trap 'exit 0' TERM; sleep 9999 & wait"]
    deploy: {mode: global}
networks: {default: {external: true, name: host}}
secrets: {s1: {file: /etc/hostname}}
configs: {c1: {file: /etc/hostname}}
"""


@dataclass(frozen=True)
class Step:
    """One step. command: what follows ``docker`` (or ``GET path``); until: repeat until a line of the output matches;
    keep: (name, pattern with one group) to remember; mask: see course.masked; silent: not compared."""

    name: str
    host: str = "node1"
    command: str = ""
    until: str = ""
    keep: tuple[tuple[str, str], ...] = ()
    mask: tuple[str, ...] = ()
    stdin: str = ""
    action: str = ""
    silent: bool = False
    engine: bool = False
    timeout_s: float = 60.0


def on_manager(name: str, command: str, *mask: str, until: str = "", stdin: str = "") -> Step:
    """A command on the manager."""
    return Step(name, "node1", command, until=until, mask=mask, stdin=stdin)


def wait(name: str, command: str, until: str, host: str = "node1", timeout_s: float = 60.0) -> Step:
    """Wait until the output matches; not compared."""
    return Step(name, host, command, until=until, silent=True, timeout_s=timeout_s)
