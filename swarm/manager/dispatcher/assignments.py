"""What one node must run, the secrets and configs that it needs, and the messages that tell the node.

Theory of operation. An AssignmentSet belongs to one open stream. It knows which tasks and volumes the node was told of
and which dependencies they use; committed changes of the node's tasks mark what must be sent next. Dependencies are
sent with the first task that may still start with them, and removed with the last. Messages are made from the store
when they are sent, so ten changes of a task within a batch become one. A batch has dependencies first, then tasks, then
removals, so that a task never arrives before what it needs, even when the batch is split.

(swarmkit: manager/dispatcher/assignments.go)
"""

from __future__ import annotations

from collections.abc import Iterator

from swarm import api, defaults
from swarm.api.equality import same_task
from swarm.store.store import View

Key = tuple[int, str]
"""ResourceType and ID."""

_UPDATE_ORDER = (api.SECRET, api.CONFIG, api.VOLUME, api.TASK)


def dependencies_of(task: api.Task) -> Iterator[Key]:
    """Secrets and configs that a task references; repeats are possible."""
    for reference in task.spec.resource_references:
        if reference.resource_type in (api.SECRET, api.CONFIG):
            yield reference.resource_type, reference.resource_id
    for secret in task.spec.container.secrets:
        yield api.SECRET, secret.secret_id
    for config in task.spec.container.configs:
        yield api.CONFIG, config.config_id


class AssignmentSet:
    """What the agent of one stream has been told, and what it has not been told yet."""

    def __init__(self, node_id: str, view: View) -> None:
        self._node_id = node_id
        self._tasks: dict[str, api.Task] = {}
        self._volumes: dict[str, int] = {}
        self._uses: dict[str, tuple[Key, ...]] = {}
        self._users: dict[Key, dict[str, None]] = {}
        self._changes: dict[Key, bool] = {}
        self._sequence = 0
        for task in view.find(api.Task, "node", node_id):
            self.task_changed(task)
        for volume in view.all(api.Volume):
            self.volume_changed(volume)

    @property
    def changed(self) -> bool:
        """Whether there is anything to send."""
        return bool(self._changes)

    # --- changes ---------------------------------------------------------------------------------------------------

    def task_changed(self, task: api.Task) -> None:
        """A task of this node was created or changed."""
        if task.status.state < api.ASSIGNED:
            return
        known = self._tasks.get(task.id)
        same = known is not None and same_task(known, task)
        self._tasks[task.id] = task
        if task.status.state > api.RUNNING:
            self._use(task.id, ())
        elif not same:
            self._use(task.id, tuple(dict.fromkeys(dependencies_of(task))))
        if not same or task.status.state <= api.ASSIGNED:  # up to ASSIGNED the status is not the agent's own
            self._changes[api.TASK, task.id] = True

    def task_removed(self, task_id: str) -> None:
        """A task is gone, or no longer this node's."""
        if self._tasks.pop(task_id, None) is not None:
            self._use(task_id, ())
            self._changes[api.TASK, task_id] = False

    def volume_changed(self, volume: api.Volume) -> None:
        """A cluster volume was created or changed."""
        published = next((s for s in volume.publish_status if s.node_id == self._node_id), None)
        if published is None or published.state < api.VolumePublishStatus.PUBLISHED:
            return
        if self._volumes.get(volume.id) == published.state:
            return
        if published.state > api.VolumePublishStatus.PENDING_NODE_UNPUBLISH:
            self.volume_removed(volume.id)
            return
        self._volumes[volume.id] = published.state
        self._use(volume.id, tuple((api.SECRET, secret.secret) for secret in volume.spec.secrets))
        self._changes[api.VOLUME, volume.id] = published.state == api.VolumePublishStatus.PUBLISHED

    def volume_removed(self, volume_id: str) -> None:
        """A volume is confirmed as unpublished, or gone: its secrets are no longer needed here."""
        if self._volumes.pop(volume_id, None) is not None:
            self._use(volume_id, ())

    def _use(self, user_id: str, keys: tuple[Key, ...]) -> None:
        """From now on a task or volume needs these dependencies and no others."""
        before = self._uses.pop(user_id, ())
        if keys:
            self._uses[user_id] = keys
        for key in keys:
            if not self._users.setdefault(key, {}):
                self._changes[key] = True
            self._users[key][user_id] = None
        for key in before:
            if key in keys:
                continue
            del self._users[key][user_id]
            if not self._users[key]:
                del self._users[key]
                self._changes[key] = False

    # --- messages --------------------------------------------------------------------------------------------------

    def complete(self, view: View) -> api.AssignmentsMessage:
        """The first message of the stream: everything that is assigned."""
        return self._message(api.AssignmentsMessage.COMPLETE, self._take(view))

    def incremental(self, view: View) -> list[api.AssignmentsMessage]:
        """What changed since the message before, in messages of at most ASSIGNMENT_CHANGES_MAX changes."""
        changes, size = self._take(view), defaults.ASSIGNMENT_CHANGES_MAX
        batches = [changes[i : i + size] for i in range(0, len(changes), size)]
        return [self._message(api.AssignmentsMessage.INCREMENTAL, batch) for batch in batches]

    def tasks(self) -> api.TasksMessage:
        """Everything that is assigned, in the form of the deprecated Tasks stream."""
        self._changes.clear()
        return api.TasksMessage(tasks=self._tasks.values())

    def _message(
        self, kind: api.AssignmentsMessage.Type, changes: list[api.AssignmentChange]
    ) -> api.AssignmentsMessage:
        before = str(self._sequence) if self._sequence else ""
        self._sequence += 1
        return api.AssignmentsMessage(type=kind, applies_to=before, results_in=str(self._sequence), changes=changes)

    def _take(self, view: View) -> list[api.AssignmentChange]:
        changes, self._changes = self._changes, {}
        out = []
        for kind in _UPDATE_ORDER:
            for (resource, object_id), update in changes.items():
                if resource == kind and update and (made := self._update(view, kind, object_id)) is not None:
                    out.append(made)
        for kind in reversed(_UPDATE_ORDER):
            out.extend(
                self._removal(view, kind, object_id)
                for (resource, object_id), update in changes.items()
                if resource == kind and not update
            )
        return out

    def _update(self, view: View, kind: int, object_id: str) -> api.AssignmentChange | None:
        change = api.AssignmentChange(action=api.AssignmentChange.UPDATE)
        if kind == api.TASK:
            change.assignment.task.CopyFrom(self._tasks[object_id])
        elif kind == api.SECRET:
            secret = view.get(api.Secret, object_id)
            if secret is None or secret.spec.HasField("driver"):
                return None  # the payload would come from a secret driver, which no manager here has
            change.assignment.secret.CopyFrom(secret)
        elif kind == api.CONFIG:
            config = view.get(api.Config, object_id)
            if config is None:
                return None
            change.assignment.config.CopyFrom(config)
        elif (volume := self._volume(view, object_id)) is not None:
            change.assignment.volume.CopyFrom(volume)
        else:
            return None
        return change

    def _removal(self, view: View, kind: int, object_id: str) -> api.AssignmentChange:
        change = api.AssignmentChange(action=api.AssignmentChange.REMOVE)
        if kind == api.TASK:
            change.assignment.task.id = object_id
        elif kind == api.SECRET:
            change.assignment.secret.id = object_id
        elif kind == api.CONFIG:
            change.assignment.config.id = object_id
        else:
            change.assignment.volume.CopyFrom(self._volume(view, object_id) or api.VolumeAssignment(id=object_id))
        return change

    def _volume(self, view: View, volume_id: str) -> api.VolumeAssignment | None:
        """A volume as its node needs it, with the context that its controller gave for this node."""
        volume = view.get(api.Volume, volume_id)
        if volume is None:
            return None
        published = next((s for s in volume.publish_status if s.node_id == self._node_id), None)
        return api.VolumeAssignment(
            id=volume.id,
            volume_id=volume.volume_info.volume_id,
            driver=volume.spec.driver,
            volume_context=volume.volume_info.volume_context,
            publish_context=published.publish_context if published is not None else {},
            access_mode=volume.spec.access_mode,
            secrets=volume.spec.secrets,
        )
