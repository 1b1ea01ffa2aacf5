"""When everything is as it should be: after the faults stop there must be no problems left before long.

(liveness, as the VOPR of TigerBeetle asks for it: first safety under faults, then the faults stop)
"""

from __future__ import annotations

from swarm import api
from swarm.agent.discovery import JOURNAL_PREFIX
from swarm.api.objects import slot_key
from swarm.manager.manager import Manager
from swarm.node.autolock import kek_of
from swarm.store.store import Store
from tests.sim.clear_text import clear_text
from tests.sim.history import History
from tests.sim.raft_content import CLEAR
from tests.sim.world import Node, World

LIMIT_S = 500.0
STEADY_S = 3.0
REST_S = 30.0
RESTS_MAX = 8
WAKES_PER_S_MAX = 60.0


def problems(world: World) -> list[str]:
    """What is not as it should be."""
    leader = world.leader()
    if leader is None or leader.manager is None or leader.manager.manager is None:
        return ["nobody leads"]
    manager = leader.manager.manager
    store = manager.store
    stock = [node for node in world.managing() if node.stock]
    return [
        *([f"{leader.name} leads stock managers"] if stock and not leader.stock else []),
        *_group_problems(world, manager),
        *_node_problems(world, store),
        *_lock_problems(world, store),
        *_service_problems(store),
        *_task_problems(world, store),
    ]


def _group_problems(world: World, leader: Manager) -> list[str]:
    out = []
    members = {member.node_id: raft_id for raft_id, member in leader.group.members.items()}
    wanted = {node.id: None for node in leader.store.all(api.Node) if node.spec.desired_role == api.MANAGER}
    out += [f"member {node_id} is no manager" for node_id in members if node_id not in wanted]
    running = {node.node_id: node for node in world.managing()}
    present = {node.node_id for node in world.nodes if not node.gone}
    for node in leader.store.all(api.Node):
        if node.id not in wanted or node.id not in present:
            continue  # a join that was given up leaves a node behind that never comes
        machine = running[node.id].manager.manager if node.id in running else None  # type: ignore[union-attr]
        if node.id not in members:
            out.append(f"manager {node.id} is no member")
        elif machine is None:
            out.append(f"manager {node.id} does not run")
        elif (machine.store.index, machine.store.digest) != (leader.store.index, leader.store.digest):  # type: ignore[attr-defined,union-attr]
            out.append(f"manager {node.id} is at {machine.store.index}, the leader at {leader.store.index}")
        elif machine.group.members != leader.group.members:
            out.append(f"manager {node.id} knows other members")
    out += [f"{node.name} runs a manager" for node_id, node in running.items() if node_id not in members]
    return out


def _node_problems(world: World, store: Store) -> list[str]:
    out = []
    for node in world.nodes:
        stored = store.get(api.Node, node.node_id) if node.node_id else None
        if node.gone:
            continue
        if stored is None:
            out.append(f"{node.name} is not in the store")
        elif stored.status.state != api.NodeStatus.READY:
            out.append(f"{node.name} is {api.NodeStatus.State.Name(stored.status.state)}")
        elif stored.role != stored.spec.desired_role:
            out.append(f"{node.name} should have another role")
        elif node.process is None or (stored.role == api.MANAGER) != (node.process.identity.role == "swarm-manager"):
            out.append(f"{node.name} has a certificate of another role")
    return out


def _lock_problems(world: World, store: Store) -> list[str]:
    """Key file and log of each manager are as the cluster wants them, and nothing is left that can be read."""
    kek = kek_of(next(store.all(api.Cluster)))
    out = []
    for node in world.managing():
        assert node.process is not None
        keys = node.process.credentials.keys
        if keys.kek.key != kek.key:
            out.append(f"{node.name} has another unlock key than the cluster")
        elif kek.key and CLEAR in node.disk.raft.data_keys():
            out.append(f"{node.name} is locked, but its log is in the clear")
        elif kek.key and (keys.raft_keys is None or keys.raft_keys.needs_rotation):
            out.append(f"{node.name} is locked, but its data key was in the clear")
    return out


def _service_problems(store: Store) -> list[str]:
    out = []
    for service in store.all(api.Service):
        mode = service.spec.WhichOneof("mode")
        tasks = list(store.find(api.Task, "service", service.id))
        updating = service.update_status.state in (api.UpdateStatus.UPDATING, api.UpdateStatus.ROLLBACK_STARTED)
        if updating and not any(_waits_for_room(task) for task in tasks):
            out.append(f"{service.id} is still being updated")
        live = [task for task in tasks if task.desired_state <= api.RUNNING]
        fine = [task for task in live if task.status.state == api.RUNNING or _waits_for_room(task)]
        if mode == "replicated":
            wanted = service.spec.replicated.replicas
            slots = {task.slot for task in fine}
            exact = any(_waits_for_room(task) for task in live) or len(fine) == wanted
            if len(slots) != wanted or len(live) != len(fine) or not exact:
                out.append(f"{service.id}: {len(fine)} of {wanted} replicas fine, {len(live)} tasks live")
        elif mode == "global":
            nodes = sorted(task.node_id for task in live if task.status.state == api.RUNNING)
            wanted_on = sorted(n.id for n in store.all(api.Node) if n.status.state == api.NodeStatus.READY)
            room = service.spec.task.resources.reservations.nano_cpus == 0
            if not set(nodes) <= set(wanted_on) or (room and nodes != wanted_on):
                out.append(f"{service.id}: on {nodes} instead of {wanted_on}")
        elif mode == "replicated_job":
            iteration = service.job_status.job_iteration.index
            done = [
                slot
                for slot in {task.slot for task in tasks}
                if any(
                    task.status.state == api.COMPLETE and task.job_iteration.index == iteration
                    for task in store.find(api.Task, "slot", slot_key(service.id, slot))
                )
            ]
            waits = any(_waits_for_room(task) for task in tasks)
            if len(done) < service.spec.replicated_job.total_completions and not waits:
                out.append(f"{service.id}: {len(done)} of {service.spec.replicated_job.total_completions} completed")
    return out


def _waits_for_room(task: api.Task) -> bool:
    return task.status.state == api.PENDING and bool(task.status.err)


def _task_problems(world: World, store: Store) -> list[str]:
    """Engines run exactly what is assigned to them."""
    out = []
    for node in world.nodes:
        if node.gone or not node.node_id:
            continue
        tasks = list(store.find(api.Task, "node", node.node_id))
        running = sorted(task.id for task in tasks if task.status.state == api.RUNNING)
        if node.engine.running() != running:
            out.append(f"{node.name} runs {node.engine.running()} instead of {running}")
        known = {task.id for task in tasks}
        out += [f"{node.name} keeps a container of {i}" for i in node.engine.containers if i not in known]
        remembered = [i for i in node.disk.journal if not i.startswith(JOURNAL_PREFIX)]  # of networks: not a task's
        out += [f"{node.name} remembers task {i}" for i in remembered if i not in known]
        for task in tasks:
            state = task.status.state
            if task.desired_state >= api.SHUTDOWN and api.ASSIGNED <= state < api.COMPLETE:
                out.append(f"task {task.id} should stop but is {api.TaskState.Name(state)}")
            elif state in (api.ASSIGNED, api.ACCEPTED, api.PREPARING, api.STARTING):
                out.append(f"task {task.id} stays {api.TaskState.Name(state)}")
    return out


def converge(world: World) -> None:
    """Let time pass until nothing is wrong any more, and stays so."""
    kernel = world.kernel
    end, steady = kernel.now + LIMIT_S, 0.0
    while steady < STEADY_S:
        found = problems(world) or clear_text(world)
        steady = 0.0 if found else steady + 0.5
        assert kernel.now < end, "no convergence: " + "; ".join(found[:12])
        kernel.advance(kernel.now + 0.5)
        if found:
            world.rescue()


def rest(world: World) -> None:
    """Before long nobody writes and nobody spins: what remains is that nodes that left are given up."""
    kernel = world.kernel
    for _ in range(RESTS_MAX):
        leader = world.leader()
        assert leader is not None
        assert leader.manager is not None
        index = leader.manager.store.index
        before = {node.name: _wakes(node) for node in world.alive()}
        kernel.advance(kernel.now + REST_S)
        if leader.manager.store.index == index:
            break
    else:
        raise AssertionError("a cluster at rest writes")
    for node in world.alive():
        rate = (_wakes(node) - before[node.name]) / REST_S
        assert rate < WAKES_PER_S_MAX, f"{node.name} wakes {rate} times a second"
    assert not problems(world), "something broke at rest: " + "; ".join(problems(world))


def _wakes(node: Node) -> int:
    process = node.process
    assert process is not None
    drivers = [
        process.agent.driver if process.agent else None,
        process.driver,
        process.manager.driver if process.manager is not None else None,
    ]
    return sum(driver.wakes for driver in drivers if driver is not None)


def nothing_lost(world: World, history: History) -> None:
    """What was acknowledged is in the final store."""
    history.check()
    leader = world.leader()
    assert leader is not None
    assert leader.manager is not None
    store = leader.manager.store
    kinds = {"service": api.Service, "config": api.Config, "secret": api.Secret}
    for known in history.objects.values():
        obj = store.get(kinds[known.kind], known.object_id)
        if known.removed:
            assert obj is None, f"{known.name} is back"
        elif not known.removal_asked:
            assert obj is not None, f"{known.name} is lost"
        if obj is not None:
            assert obj.meta.version.index >= known.version, f"{known.name} went back"
