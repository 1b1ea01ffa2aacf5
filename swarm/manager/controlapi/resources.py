"""Extensions with resources of their own kinds, and cluster volumes.

(swarmkit: manager/controlapi/extension.go, resource.go, volume.go)
"""

from __future__ import annotations

from typing import Any

from swarm import api
from swarm.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, OutOfSequence, Unimplemented
from swarm.manager.controlapi.common import (
    Test,
    annotation_tests,
    either_test,
    find_one,
    in_order,
    is_one_of,
    plural,
    require,
    select,
    spec_labels,
    spec_name,
)
from swarm.store.store import View
from swarm.store.tx import Tx

_EXTENSION_ID = "extension ID must be provided"
_RESOURCE_ID = "resource ID must be present"
_RESOURCES_NAMED_MAX = 10


def _name(obj: Any) -> str:
    return str(obj.annotations.name)


def _labels(obj: Any) -> Any:
    return obj.annotations.labels


def _named(view: View, cls: type[api.Extension] | type[api.Resource], name: str) -> bool:
    """Whether an object of this kind has this name; compared without case, as all names are."""
    return any(_name(obj).lower() == name.lower() for obj in view.all(cls))


# --- extensions ----------------------------------------------------------------------------------------------------


def get_extension(view: View, request: api.GetExtensionRequest) -> api.GetExtensionResponse:
    """GetExtension."""
    return api.GetExtensionResponse(extension=find_one(view, api.Extension, request.extension_id, _EXTENSION_ID))


def create_extension(tx: Tx, request: api.CreateExtensionRequest) -> api.CreateExtensionResponse:
    """CreateExtension: declares a kind of resources; its ID is the kind."""
    name = request.annotations.name
    require(name, "extension name must be provided")
    if _named(tx, api.Extension, name):
        raise AlreadyExists(f"extension {name} already exists")
    extension = api.Extension(id=tx.new_id(), annotations=request.annotations, description=request.description)
    return api.CreateExtensionResponse(extension=tx.stamped(tx.create(extension)))


def remove_extension(tx: Tx, request: api.RemoveExtensionRequest) -> api.RemoveExtensionResponse:
    """RemoveExtension: refused while resources of its kind exist."""
    require(request.extension_id, _EXTENSION_ID)
    extension = tx.get(api.Extension, request.extension_id)
    if extension is None:
        raise NotFound(f"could not find extension {request.extension_id}")
    users = [_name(resource) for resource in in_order(tx.all(api.Resource)) if resource.kind == extension.id]
    if users:
        names = ", ".join(users[:_RESOURCES_NAMED_MAX])
        word = plural("resource", users)
        raise InvalidArgument(f"extension '{_name(extension)}' is in use by the following {word}: {names}")
    tx.remove(api.Extension, extension.id)
    return api.RemoveExtensionResponse()


# --- resources -----------------------------------------------------------------------------------------------------


def get_resource(view: View, request: api.GetResourceRequest) -> api.GetResourceResponse:
    """GetResource."""
    return api.GetResourceResponse(resource=find_one(view, api.Resource, request.resource_id, _RESOURCE_ID))


def list_resources(view: View, request: api.ListResourcesRequest) -> api.ListResourcesResponse:
    """ListResources."""
    tests: list[Test] = [either_test(request.filters, _name, _labels)]
    kind = request.filters.kind
    if kind:
        tests.append(lambda resource: resource.kind == kind)
    return api.ListResourcesResponse(resources=select(view.all(api.Resource), tests))


def create_resource(tx: Tx, request: api.CreateResourceRequest) -> api.CreateResourceResponse:
    """CreateResource: something of a kind that an extension declares."""
    name = request.annotations.name
    require(name, "Resource must have a name")
    require(request.kind, "Resource must belong to an Extension")
    require(tx.get(api.Extension, request.kind) is not None, f"Kind {request.kind} is not registered")
    if _named(tx, api.Resource, name):
        raise AlreadyExists(f"A resource with name {name} already exists")
    resource = api.Resource(id=tx.new_id(), annotations=request.annotations, kind=request.kind)
    if request.HasField("payload"):
        resource.payload.CopyFrom(request.payload)
    return api.CreateResourceResponse(resource=tx.stamped(tx.create(resource)))


def update_resource(tx: Tx, request: api.UpdateResourceRequest) -> api.UpdateResourceResponse:
    """UpdateResource: labels and payload; what is left out stays."""
    require(request.resource_id and request.HasField("resource_version"), "must include ID and version")
    before = find_one(tx, api.Resource, request.resource_id)
    if request.HasField("annotations"):
        require(_name(before) == request.annotations.name, "cannot change resource name")
    try:
        resource = tx.edit(api.Resource, before.id, request.resource_version.index)
    except OutOfSequence as error:
        raise InvalidArgument(error.message) from error
    if request.HasField("annotations"):
        resource.annotations.CopyFrom(request.annotations)
    if request.HasField("payload"):
        resource.payload.CopyFrom(request.payload)
    return api.UpdateResourceResponse(resource=tx.stamped(resource))


def remove_resource(tx: Tx, request: api.RemoveResourceRequest) -> api.RemoveResourceResponse:
    """RemoveResource."""
    tx.remove(api.Resource, find_one(tx, api.Resource, request.resource_id, _RESOURCE_ID).id)
    return api.RemoveResourceResponse()


# --- volumes -------------------------------------------------------------------------------------------------------


def get_volume(view: View, request: api.GetVolumeRequest) -> api.GetVolumeResponse:
    """GetVolume."""
    volume = view.get(api.Volume, request.volume_id)
    if volume is None:
        raise NotFound(f"volume {request.volume_id} not found")
    return api.GetVolumeResponse(volume=volume)


def list_volumes(view: View, request: api.ListVolumesRequest) -> api.ListVolumesResponse:
    """ListVolumes."""
    filters = request.filters
    tests: list[Test] = annotation_tests(filters, spec_name, spec_labels)
    groups, drivers = list(filters.groups), list(filters.drivers)
    if groups:
        tests.append(lambda volume: is_one_of(volume.spec.group, groups))
    if drivers:
        tests.append(lambda volume: is_one_of(volume.spec.driver.name, drivers))
    return api.ListVolumesResponse(volumes=select(view.all(api.Volume), tests))


def create_volume(tx: Tx, request: api.CreateVolumeRequest) -> api.CreateVolumeResponse:
    """CreateVolume: checked as SwarmKit does, then refused, because CSI is not implemented yet."""
    require(request.HasField("spec"), "spec must not be nil")
    spec = request.spec
    require(spec.HasField("driver"), "driver must be specified")
    require(spec.annotations.name, "meta: name must be provided")
    require(spec.HasField("access_mode"), "AccessMode must not be nil")
    require(
        spec.access_mode.WhichOneof("access_type"),
        "Volume AccessMode must specify either Mount or Block access type",
    )
    missing = [secret.secret for secret in spec.secrets if tx.get(api.Secret, secret.secret) is None]
    require(not missing, f"{plural('secret', missing)} not found: {', '.join(missing)}")
    raise Unimplemented(
        f'creating the cluster volume "{spec.annotations.name}" is not available yet: CSI drivers are not supported; '
        "local volumes and those of volume plugins work on every node"
    )


def update_volume(tx: Tx, request: api.UpdateVolumeRequest) -> api.UpdateVolumeResponse:
    """UpdateVolume: labels and availability only."""
    require(request.volume_id, "VolumeID must not be empty")
    require(request.HasField("spec"), "Spec must not be empty")
    require(request.HasField("volume_version"), "VolumeVersion must not be empty")
    before, after = find_one(tx, api.Volume, request.volume_id).spec, request.spec
    require(before.annotations.name == after.annotations.name, "Name cannot be updated")
    require(before.group == after.group, "Group cannot be updated")
    require(
        before.AccessibilityRequirements == after.AccessibilityRequirements,
        "AccessibilityRequirements cannot be updated",
    )
    require(before.driver == after.driver, "Driver cannot be updated")
    require(before.access_mode == after.access_mode, "AccessMode cannot be updated")
    require(list(before.secrets) == list(after.secrets), "Secrets cannot be updated")
    require(before.capacity_range == after.capacity_range, "CapacityRange cannot be updated")
    volume = tx.edit(api.Volume, request.volume_id, request.volume_version.index)
    volume.spec.annotations.labels.clear()
    volume.spec.annotations.labels.update(after.annotations.labels)
    volume.spec.availability = after.availability
    return api.UpdateVolumeResponse(volume=tx.stamped(volume))


def remove_volume(tx: Tx, request: api.RemoveVolumeRequest) -> api.RemoveVolumeResponse:
    """RemoveVolume: marks the volume, so that its storage is deleted first; ``force`` removes it at once."""
    volume = tx.get(api.Volume, request.volume_id)
    if volume is None:
        raise NotFound(f"volume {request.volume_id} not found")
    if request.force:
        tx.remove(api.Volume, volume.id)
        return api.RemoveVolumeResponse()
    if volume.publish_status:
        raise FailedPrecondition("volume is still in use")
    tx.edit(api.Volume, volume.id).pending_delete = True
    return api.RemoveVolumeResponse()
