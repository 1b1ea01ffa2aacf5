"""The steps of the course: what every swarm tutorial types, and every mistake people make, one after the other.

Words in at-signs (``@worker@``) stand for what an earlier step showed (``keep``).
"""

from __future__ import annotations

from integration.course_words import API, COMPOSE, EVENT, FULL, PLACED, PS, QUICK, RUN, TALK, Step
from integration.course_words import on_manager as _m
from integration.course_words import wait as _wait

_BEFORE = [
    _m(f"before: {command}", command)
    for command in (
        "node ls",
        "node ps",
        "node inspect self",
        "service ls",
        "service ps web",
        "service create busybox",
        "secret ls",
        "config ls",
        "stack ls",
        "swarm leave",
        "swarm leave --force",
        "swarm unlock",
        "swarm unlock-key",
        "swarm join-token worker",
        "swarm join-token nobody",
        "swarm update --task-history-limit 3",
        "swarm ca",
        "info --format '{{json .Swarm}}'",
    )
]

_INIT = [
    _m("init: unknown address", "swarm init --advertise-addr nosuch0"),
    _m("init: no address of this host", "swarm init --listen-addr 10.1.1.1:2377 --advertise-addr 10.99.0.1"),
    _m("init: unknown availability", "swarm init --availability sleepy"),
    _m("init: by interface and port", "swarm init --advertise-addr eth0:2400 --listen-addr eth0:2400"),
    _m("init: leave again", "swarm leave --force"),
    _m("init: empty pool", """POST /v1.41/swarm/init '{"ListenAddr":"0.0.0.0:2377","DefaultAddrPool":[]}'"""),
    _m("api: swarm with an empty pool", "GET /v1.41/swarm", "members"),
    _m("info: empty pool", "info --format '{{json .Swarm.Cluster.DefaultAddrPool}}'"),
    _m("empty pool: leave", "swarm leave --force"),
    Step("join: malformed token", "node2", "swarm join --token nonsense 10.99.0.1:2377"),
    Step("join: nobody listens", "node2", "swarm join --token SWMTKN-1-0a-0b 10.99.0.1:2377"),
    Step(
        "init",
        "node1",
        "swarm init --advertise-addr 10.99.0.1 --default-addr-pool 10.0.0.0/8",
        keep=(("join", r"docker (swarm join .*)"),),
    ),
    _m("init: twice", "swarm init"),
    _m("join: as a member", "swarm join --token SWMTKN-1-0a-0b 10.99.0.1:2377"),
    _m("unlock: not locked", "swarm unlock"),
    _m("unlock-key: not locked", "swarm unlock-key"),
    _m("leave: the last manager", "swarm leave"),
    Step("token: worker", "node1", "swarm join-token worker"),
    Step("token: manager", "node1", "swarm join-token manager"),
    Step("token: quiet", "node1", "swarm join-token -q worker", keep=(("token", r"(SWMTKN\S+)"),)),
    Step("token: no role", "node1", "swarm join-token nobody"),
    Step("join: no token", "node2", "swarm join 10.99.0.1:2377"),
    Step("join: wrong secret", "node2", "swarm join --token @token@x 10.99.0.1:2377"),
    Step("join: worker", "node2", "@join@"),
    Step("join: another", "node3", "@join@"),
    _wait("three nodes", "node ls --format '{{.Status}}'", r"Ready\nReady\nReady"),
    Step("token: rotate", "node1", "swarm join-token --rotate worker"),
    Step("token: rotate quietly", "node1", "swarm join-token --rotate -q manager"),
    _m("update: limit", "swarm update --task-history-limit 4 --cert-expiry 100h --dispatcher-heartbeat 3s"),
    _m("update: nothing", "swarm update"),
    _m("update: expiry too short", "swarm update --cert-expiry 1m"),
    _m("ca", "swarm ca"),
    _m("ca: flag without rotate", "swarm ca --cert-expiry 2h"),
]

_NODES = [
    _m("node ls", "node ls", "sort"),
    _m("node ls: formatted", "node ls --format '{{json .}}'", "sort"),
    _m("node ls: role filter", "node ls --filter role=worker --format '{{.Hostname}}'", "sort"),
    _m("node ls: unknown filter", "node ls --filter nope=x"),
    _m("node ls: bad role", "node ls --filter role=nope"),
    Step("node ls: on a worker", "node2", "node ls"),
    Step("service create: on a worker", "node2", "service create busybox"),
    Step("swarm update: on a worker", "node2", "swarm update --task-history-limit 3"),
    Step("join-token: on a worker", "node2", "swarm join-token worker"),
    Step("init: on a worker", "node2", "swarm init"),
    Step("info: on a worker", "node2", "info --format '{{json .Swarm}}'"),
    _m("info", "info --format '{{json .Swarm}}'"),
    Step("info: text", "node1", "info", mask=("info",)),
    Step("info: text on a worker", "node2", "info", mask=("info",)),
    _m("node inspect", "node inspect self"),
    _m("node inspect: worker", "node inspect node2"),
    _m("node inspect: pretty", "node inspect --pretty self node2"),
    _m("node inspect: unknown", "node inspect nosuch"),
    _m("node update: labels", "node update --label-add zone=a --label-add bare node1"),
    _m("node update: zone b", "node update --label-add zone=b node2"),
    _m("node update: zone c", "node update --label-add zone=c node3"),
    _m("node update: remove a label", "node update --label-rm bare node1"),
    _m("node update: remove an unknown label", "node update --label-rm nosuch node1"),
    _m("node update: unknown node", "node update --availability drain nosuch"),
    _m("node update: unknown availability", "node update --availability sleepy node2"),
    _m("node update: unknown role", "node update --role king node2"),
    _m("node ls: label filter", "node ls --filter node.label=zone=b --format '{{.Hostname}}'"),
    _m("node inspect: labels", "node inspect --format '{{json .Spec}}' node1"),
    _m("node ps: empty", "node ps node2"),
    _m("node demote: the last manager", "node demote node1"),
    _m("node promote: already", "node promote node1"),
    _m("node demote: already", "node demote node2"),
    _m("node rm: a manager", "node rm node1"),
    _m("node rm: not down", "node rm node2"),
    _m("node rm: unknown", "node rm nosuch"),
]

_RESOURCES = [
    _m("secret create", "secret create -l a=b sec1 -", stdin="top secret"),
    _m("secret create: again", "secret create sec1 -", stdin="other"),
    _m("secret create: another", "secret create sec2 -", stdin="more"),
    _m("secret create: bad name", "secret create 'a b' -", stdin="more"),
    _m("secret ls", "secret ls"),
    _m("secret ls: filter", "secret ls --filter name=sec2 --format '{{.Name}} {{.Driver}} {{.Labels}}'"),
    _m("secret inspect", "secret inspect sec1"),
    _m("secret inspect: pretty", "secret inspect --pretty sec1"),
    _m("secret inspect: unknown", "secret inspect nosuch"),
    _m("secret rm: unknown", "secret rm nosuch"),
    _m("config create", "config create -l a=b cfg1 -", stdin="conf {{.Service.Name}} {{.Task.Slot}}"),
    _m("config create: again", "config create cfg1 -", stdin="x"),
    _m("config create: template", "config create --template-driver golang cfgt -", stdin="I am {{.Service.Name}}\n"),
    _m("config ls", "config ls"),
    _m("config inspect", "config inspect cfg1"),
    _m("config inspect: pretty", "config inspect --pretty cfgt"),
    _m("config inspect: unknown", "config inspect nosuch"),
]

_API = [_m(f"api: {path}", f"GET /v1.41{path}", *masks) for path, *masks in API]

_CREATE = [
    _m("create: web", f"service create --replicas 6 --name web busybox {RUN}"),
    _m("create: web is spread 2/2/2", "service ps --format '{{.Node}}' web", "sort"),
    *(
        Step(
            f"docker ps: {host}",
            host,
            "ps --format '{{.Image}} {{.Command}} {{.Status}} {{.Names}}' "
            "--filter label=com.docker.swarm.service.name=web",
            mask=("task", "sort", "up"),
        )
        for host in ("node1", "node2", "node3")
    ),
    Step("docker ps: labels", "node2", "ps -q", keep=(("container", r"(\w+)"),), silent=True),
    Step("docker inspect: labels", "node2", "inspect --format '{{json .Config.Labels}}' @container@", mask=("task",)),
    Step(
        "docker inspect: config",
        "node2",
        "inspect --format '{{json .HostConfig}} {{json .Config.Cmd}} {{json .Config.Env}}' @container@",
    ),
    Step(
        "docker inspect: networks",
        "node2",
        "inspect --format '{{json .NetworkSettings.Networks}}' @container@",
        mask=("address",),
    ),
    Step("docker ps: is a task", "node2", "ps -q --filter is-task=true"),
    Step("docker ps: is no task", "node2", "ps -q --filter is-task=false"),
    _m("service ls", "service ls"),
    _m("service ps", "service ps web", "nodes"),
    _m("service ps: filter", "service ps --filter desired-state=shutdown web"),
    _m("service ps: node filter", f"service ps --filter node=node2 {PLACED} web", "task", "slots"),
    _m("service ps: unknown filter", "service ps --filter nope=x web"),
    _m("service ps: unknown", "service ps nosuch"),
    _m("service ps: quiet", "service ps -q --no-trunc web"),
    _m("node ps", f"node ps {PLACED} node2", "slots"),
    _m("service inspect", "service inspect web"),
    _m("service inspect: pretty", "service inspect --pretty web"),
    _m("service inspect: unknown", "service inspect nosuch"),
    _m("create: name conflict", "service create --name web busybox"),
    _m("create: full", f"service create {FULL} busybox {TALK}"),
    _m("full: inspect", "service inspect full"),
    _m("full: pretty", "service inspect --pretty full"),
    _m("full: ps", "service ps --format '{{.Name}} {{.Image}} {{.DesiredState}} {{.CurrentState}} {{.Ports}}' full"),
    Step("full: a task", "node1", "service ps -q --filter name=full.1 full", keep=(("task", r"(\w+)"),), silent=True),
    _m(
        "inspect: a task",
        "inspect --format '{{json .Spec}} {{json .DesiredState}} {{json .Status.State}}' @task@",
        "nodes",
    ),
    _m("full: logs", "service logs --raw full", "sort"),
    _m("full: logs with names", "service logs full", "sort", "nodes"),
    _m("full: logs without ids", "service logs --no-task-ids --tail 1 full", "sort", "nodes"),
    _m("full: logs with times", "service logs --timestamps --raw full", "sort"),
    _m("full: logs with details", "service logs --details full", "sort", "nodes"),
    _m("full: logs since", "service logs --since 10m --no-trunc --no-resolve full", "sort", "nodes"),
    _m("full: logs of the future", "service logs --since 2037-01-01T00:00:00 full", "sort", "nodes"),
    _m("logs: of a task", "service logs --raw @task@", "sort"),
    _m("logs: unknown", "service logs nosuch"),
    _m("secret rm: in use", "secret rm sec2"),
    _m("config rm: in use", "config rm cfgt"),
    _m(
        "create: port in use",
        "service create -d --name p2 --publish mode=host,target=53,published=5353,protocol=udp busybox",
    ),
    _m("remove p2", "service rm p2"),
    *_API,
    _m("full: rm", "service rm full"),
    _wait("full is gone", "ps -q --filter label=com.docker.swarm.service.name=full", r"\A\[exit 0\]"),
    _wait("full is gone", "ps -q --filter label=com.docker.swarm.service.name=full", r"\A\[exit 0\]", "node3"),
    _m("secret rm", "secret rm sec1 sec2"),
    _m("config rm", "config rm cfg1 cfgt nosuch"),
]

_LOCAL_NETWORKS = [
    step
    for network in ("host", "bridge", "none")
    for step in (
        _m(
            f"network {network}: create",
            f"service create -q --name on-{network} --network {network} --constraint node.hostname==node1 "
            f"{QUICK} busybox {RUN}",
        ),
        _m(f"network {network}: inspect", f"service inspect --format '{{{{json .Endpoint}}}}' on-{network}"),
        _m(f"network {network}: container", f"ps --format '{{{{.Networks}}}}' --filter name=on-{network}"),
        _m(f"network {network}: rm", f"service rm on-{network}"),
    )
]

_SPREAD = [
    _m(
        "create: global",
        f"service create --mode global {QUICK} --name glob --hostname g-{{{{.Node.Hostname}}}} busybox {RUN}",
    ),
    _m("global: ps", "service ps --format '{{.Image}} {{.Node}} {{.DesiredState}} {{.CurrentState}}' glob", "sort"),
    _m("global: scale", "service scale glob=2"),
    _m("global: ls", "service ls --filter mode=global"),
    _m("global: inspect", "service inspect --pretty glob"),
    _m("global: rm", "service rm glob"),
    _m(
        "create: replicated job",
        "service create --mode replicated-job --name job --replicas 3 --max-concurrent 2 "
        "--restart-condition none busybox sh -c 'echo job'",
    ),
    _m("job: ps", "service ps --format '{{.Image}} {{.DesiredState}} {{.CurrentState}}' job", "nodes", "sort"),
    _m("job: ls", "service ls --filter name=job"),
    _m("job: inspect", "service inspect job"),
    _m("job: pretty", "service inspect --pretty job"),
    _m("job: rm", "service rm job"),
    _m("create: global job", "service create --mode global-job --name gjob busybox sh -c 'echo gjob'"),
    _wait("gjob is done", "service ls --filter name=gjob", r"3/3 completed"),
    _m("gjob: ls", "service ls --filter name=gjob"),
    _m("gjob: inspect", "service inspect --pretty gjob"),
    _m("gjob: rollback", "service rollback gjob"),
    _m("gjob: rm", "service rm gjob"),
    _m("create: impossible constraint", "service create -d --name nonode --constraint node.hostname==nope busybox"),
    _m("nonode: ps", "service ps --no-trunc nonode", until="no suitable node"),
    _m("nonode: logs", "service logs nonode"),
    _m("create: too big", "service create -d --name big --reserve-memory 900g busybox"),
    _m("big: ps", "service ps --no-trunc big", until="no suitable node"),
    _m(
        "create: max replicas per node",
        f"service create -d --name max --replicas 4 --replicas-max-per-node 1 busybox {RUN}",
    ),
    _m(
        "max: ps",
        f"service ps --filter desired-state=running {PS} max",
        "slots",
        "sort",
        until=r"(?s)(?=.*(Running Running .*){3})(?=.*no suitable node)",
    ),
    _m("max: ls", "service ls --filter name=max"),
    _m(
        "create: no such image",
        "service create -d --name noimg --restart-condition none --no-resolve-image nosuch.invalid/img:1",
    ),
    _m("noimg: ps", "service ps --no-trunc noimg", "nodes", until=r"Shutdown\s+Rejected"),
    _m("create: no such command", "service create -d --name nocmd --restart-condition none busybox nosuchcmd"),
    _m("nocmd: ps", "service ps --no-trunc nocmd", "nodes", until=r"Shutdown\s+Failed"),
    _m(
        "create: bad mount",
        "service create -d --name nobind --restart-condition none --mount type=bind,src=/nonexistent,dst=/x busybox",
    ),
    _m("nobind: ps", "service ps --no-trunc nobind", "nodes", until=r"Shutdown\s+Rejected"),
    _m(
        "create: exits",
        "service create -d --name exits --restart-condition on-failure --restart-delay 100ms "
        "--restart-max-attempts 1 busybox sh -c 'exit 7'",
    ),
    _m("exits: ps", "service ps --no-trunc exits", "nodes", until=r"(?s)(Shutdown +Failed.*){2}"),
    _m(
        "create: unhealthy",
        "service create -d --name sick --restart-condition none --stop-signal KILL --health-cmd false "
        "--health-interval 300ms --health-retries 1 busybox sleep 9999",
    ),
    _m("sick: ps", "service ps --no-trunc sick", "nodes", until=r"Shutdown\s+(Failed|Complete)"),
    _m("service ls: all", "service ls"),
    _m("service rm: several", "service rm nonode big max noimg nocmd nobind exits sick nosuch"),
]

_BAD = [
    _m(f"bad: {what}", f"service create -d {flags} busybox")
    for what, flags in (
        ("name", "--name 'a b'"),
        ("long name", "--name " + "x" * 64),
        ("mode", "--mode nope"),
        ("replicas of a global service", "--mode global --replicas 2"),
        ("constraint", "--constraint nonsense"),
        ("constraint key", "--constraint 1a==x"),
        ("memory", "--limit-memory 1000"),
        ("cpu", "--limit-cpu 0.0000001"),
        ("restart condition", "--restart-condition never"),
        ("failure action", "--update-failure-action explode"),
        ("order", "--update-order sideways"),
        ("ratio", "--update-max-failure-ratio 7"),
        ("delay", "--update-delay=-1s"),
        ("mount type", "--mount type=nope,dst=/x"),
        ("mounts", "--mount type=tmpfs,dst=/x --mount type=tmpfs,dst=/x"),
        ("health interval", "--health-cmd true --health-interval 1us"),
        ("template", "--env A={{.Nope}}"),
        ("hostname template", "--hostname {{"),
        ("secret", "--secret nosuch"),
        ("config", "--config nosuch"),
        ("network", "--network nosuch"),
        ("ports", "--publish mode=host,target=1,published=80 --publish mode=host,target=2,published=80"),
        ("port", "--publish 99999:80"),
        ("endpoint mode", "--endpoint-mode nope"),
        ("update config of a job", "--mode replicated-job --update-delay 1s"),
        ("credential spec", "--credential-spec nonsense"),
    )
] + [_m("bad: image", "service create -d 'Busy Box'"), _m("bad: no image", "service create -d")]

_UPDATE = [
    _m("scale: up", "service scale web=7"),
    _m("scale: down", "service scale web=3"),
    _m("scale: nonsense", "service scale web=x"),
    _m("scale: unknown", "service scale nosuch=1"),
    _m("update: short monitor", f"service update {QUICK} web"),
    _m("service update: nothing", "service update web"),
    _m("update: image", "service update --image busybox:1.35 web"),
    _m("update: env", "service update --env-add A=b web"),
    _m("web: inspect after updates", "service inspect web"),
    _m("web: pretty after updates", "service inspect --pretty web"),
    _m("web: ps after updates", f"service ps {PS} web", "nodes"),
    _m("rollback", "service rollback web"),
    _m("web: pretty after the rollback", "service inspect --pretty web"),
    _m("web: state after the rollback", "service inspect --format '{{json .UpdateStatus}} {{json .PreviousSpec}}' web"),
    _m("update: force", "service update --force -q web"),
    _m("update: arguments", """service update -q --args 'sh -c "trap \\"exit 0\\" TERM; sleep 8888 & wait"' web"""),
    _m("update: labels only", "service update --label-add l=x web"),
    _m("update: fails and pauses", "service update --args 'sh -c \"exit 3\"' --restart-max-attempts 0 web", "count"),
    _m("web: state when paused", "service inspect --format '{{json .UpdateStatus}}' web"),
    _m("web: pretty when paused", "service inspect --pretty web"),
    _m("update: fails and rolls back", "service update --rollback web"),
    _m("update: set the action", "service update -q --update-failure-action rollback web"),
    _m("update: rolls back by itself", "service update --args 'sh -c \"exit 4\"' web", "count"),
    _wait("web rolled back", "service inspect --format '{{.UpdateStatus.State}}' web", "rollback_completed"),
    _m(
        "web: state after its own rollback",
        "service inspect --format '{{json .UpdateStatus}} {{json .PreviousSpec}}' web",
    ),
    _m("web: running", f"service ps --filter desired-state=running {PS} web", until=r"(.*Running Running.*\n){3}"),
    _m("update: unknown image", "service update -d --image Nope web"),
    _m("update: unknown service", "service update --force nosuch"),
    _m("update: remove what is not there", "service update -d --env-rm NOPE --label-rm NOPE web"),
    _m("update: secret not there", "service update -d --secret-add nosuch web"),
    _m("create: same beginning", f"service create -d --name webb busybox {RUN}"),
    _m("service ls: prefix filter", "service ls --filter name=web"),
    _m("rollback: nothing to go back to", "service rollback webb"),
    _m("service rm: second", "service rm webb"),
]

_FAILURES = [
    _m("drain", "node update --availability drain node2"),
    _m("drain: moved away", "node ps --filter desired-state=running node2", until=r"(?m)^ID.*\n\[exit 0\]"),
    _m("drain: ls", "node ls", "sort"),
    _wait("drain: replaced", f"service ps --filter desired-state=running {PS} web", r"\A(.*Running Running.*\n){3}"),
    _m("drain: service ps", f"service ps --filter desired-state=running {PLACED} web", "nodes"),
    _m("activate", "node update --availability active node2"),
    _m("pause", "node update --availability pause node2"),
    _m("pause: scale", "service scale web=6"),
    _m("pause: nothing new", "node ps --filter desired-state=running node2"),
    _m("activate again", "node update --availability active node2"),
    _m("force", "service update -q --force web"),
    _m(
        "force: spread",
        "service ps --filter desired-state=running --format '{{.Node}}' web",
        "sort",
        until="(node.\n){6}",
    ),
    Step(
        "a container",
        "node3",
        "ps -q --filter label=com.docker.swarm.service.name=web",
        keep=(("victim", r"(\w+)"),),
        silent=True,
    ),
    Step("kill a container", "node3", "kill @victim@"),
    _wait("killed: seen", f"service ps {PS} web", r"Shutdown Failed .*non-zero exit \(137\)"),
    _m(
        "killed: replaced",
        f"service ps --filter desired-state=running {PS} web",
        until=r"\A(.*Running Running.*\n){6}",
    ),
    Step("an engine dies", "node3", action="kill"),
    _m("node is down", "node ls", "sort", until=r"node3.*Down"),
    _wait("web moved", f"service ps --filter desired-state=running {PS} web", r"\A(.*Running Running.*\n){6}"),
    _m("node down: service ps", f"service ps --filter desired-state=running {PLACED} web", "slots", "sort"),
    _m("node down: inspect", "node inspect --format '{{json .Status}}' node3"),
    Step("the engine returns", "node3", action="start"),
    _m("node is ready", "node ls", "sort", until=r"node3.*Ready"),
    Step("nothing of old runs", "node3", "ps -q", until=r"\A\[exit 0\]"),
    _m("scale: after the return", "service scale web=9"),
    _m("scale: spread", "service ps --filter desired-state=running --format '{{.Node}}' web", "sort"),
    _m("web: rm", "service rm web"),
    *(_wait(f"nothing runs on {host}", "ps -q", r"\A\[exit 0\]", host) for host in ("node1", "node2", "node3")),
]

_EVENTS = [
    Step("events: begin", "node1", "info --format '{{.SystemTime}}'", keep=(("begin", r"(\S+)"),), silent=True),
    _m("events: secret", "secret create -l a=b sece -", stdin="x"),
    _m("events: config", "config create cfge -", stdin="x"),
    _m("events: service", f"service create -q --name ev --replicas 2 {QUICK} busybox {RUN}"),
    _m("events: scale", "service scale -d ev=1"),
    _m("events: node", "node update --label-add e=f node2"),
    _m("events: remove", "service rm ev"),
    _m("events: remove the secret", "secret rm sece"),
    _m("events: remove the config", "config rm cfge"),
    _wait("events: no container", "ps -q", r"\A\[exit 0\]"),
    Step("events: end", "node1", "info --format '{{.SystemTime}}'", keep=(("end", r"(\S+)"),), silent=True),
    *(
        _m(f"events: of {kind}", f"events --since @begin@ --until @end@ --filter type={kind} {EVENT}")
        for kind in ("secret", "config", "service", "node")
    ),
    _m("events: of the swarm", f"events --since @begin@ --until @end@ --filter scope=swarm {EVENT}", "unique", "sort"),
]

_STACK = [
    _m("stack deploy", "stack deploy -c - st", "sort", stdin=COMPOSE),
    _m("stack ls", "stack ls"),
    _m("stack services", "stack services st", until=r"(?s)3/3.*2/2"),
    _m("stack ps", "stack ps --format '{{.Image}} {{.DesiredState}} {{.CurrentState}}' st", "sort"),
    _m("stack: service inspect", "service inspect st_web"),
    _m("stack: secrets", "secret ls"),
    _m("stack deploy: again", "stack deploy -c - st", "sort", stdin=COMPOSE),
    _m("stack deploy: resolve never", "stack deploy --resolve-image never -c - st", "sort", stdin=COMPOSE),
    _m("stack ps: unchanged", "stack ps --format '{{.Image}} {{.DesiredState}} {{.CurrentState}}' st", "sort"),
    _m("stack deploy: with a broken file", "stack deploy -c - st", stdin="services: {a: {imag: x}}"),
    _m("stack rm", "stack rm st", "sort"),
    _m("stack rm: unknown", "stack rm nosuch"),
    _m("stack ps: unknown", "stack ps nosuch"),
    _m("stack services: unknown", "stack services nosuch"),
    _m("stack: nothing left", "secret ls"),
    *(_wait(f"no stack on {host}", "ps -q", r"\A\[exit 0\]", host) for host in ("node1", "node2", "node3")),
]

_END = [
    Step("leave: a worker", "node2", "swarm leave"),
    Step("leave: twice", "node2", "swarm leave"),
    Step("info: left", "node2", "info --format '{{json .Swarm}}'"),
    _m("left: node ls", "node ls", "sort", until=r"node2.*Down"),
    _m("node rm: down", "node rm node2"),
    _m("node rm: force", "node rm --force node3"),
    Step("removed: info", "node3", "info --format '{{.Swarm.LocalNodeState}}'"),
    Step("leave: removed", "node3", "swarm leave --force"),
    _m("node ls: alone", "node ls"),
    _m("leave: a manager", "swarm leave"),
    _m("leave: a manager by force", "swarm leave --force"),
    *(
        step
        for host in ("node1", "node2", "node3")
        for step in (
            Step(f"end: containers of {host}", host, "ps -aq", until=r"\A\[exit 0\]"),
            Step(f"end: info of {host}", host, "info --format '{{json .Swarm}}'"),
            Step(f"end: node ls of {host}", host, "node ls"),
        )
    ),
]

STEPS: list[Step] = [
    *_BEFORE,
    *_INIT,
    *_NODES,
    *_RESOURCES,
    *_CREATE,
    *_LOCAL_NETWORKS,
    *_SPREAD,
    *_BAD,
    *_UPDATE,
    *_FAILURES,
    *_EVENTS,
    *_STACK,
    *_END,
]
