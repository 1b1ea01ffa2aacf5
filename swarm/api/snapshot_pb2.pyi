from swarm.api import objects_pb2 as _objects_pb2
from swarm.api import raft_pb2 as _raft_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class StoreSnapshot(_message.Message):
    __slots__ = ("nodes", "services", "networks", "tasks", "clusters", "secrets", "resources", "extensions", "configs", "volumes")
    NODES_FIELD_NUMBER: _ClassVar[int]
    SERVICES_FIELD_NUMBER: _ClassVar[int]
    NETWORKS_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    CLUSTERS_FIELD_NUMBER: _ClassVar[int]
    SECRETS_FIELD_NUMBER: _ClassVar[int]
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    EXTENSIONS_FIELD_NUMBER: _ClassVar[int]
    CONFIGS_FIELD_NUMBER: _ClassVar[int]
    VOLUMES_FIELD_NUMBER: _ClassVar[int]
    nodes: _containers.RepeatedCompositeFieldContainer[_objects_pb2.Node]
    services: _containers.RepeatedCompositeFieldContainer[_objects_pb2.Service]
    networks: _containers.RepeatedCompositeFieldContainer[_objects_pb2.Network]
    tasks: _containers.RepeatedCompositeFieldContainer[_objects_pb2.Task]
    clusters: _containers.RepeatedCompositeFieldContainer[_objects_pb2.Cluster]
    secrets: _containers.RepeatedCompositeFieldContainer[_objects_pb2.Secret]
    resources: _containers.RepeatedCompositeFieldContainer[_objects_pb2.Resource]
    extensions: _containers.RepeatedCompositeFieldContainer[_objects_pb2.Extension]
    configs: _containers.RepeatedCompositeFieldContainer[_objects_pb2.Config]
    volumes: _containers.RepeatedCompositeFieldContainer[_objects_pb2.Volume]
    def __init__(self, nodes: _Optional[_Iterable[_Union[_objects_pb2.Node, _Mapping]]] = ..., services: _Optional[_Iterable[_Union[_objects_pb2.Service, _Mapping]]] = ..., networks: _Optional[_Iterable[_Union[_objects_pb2.Network, _Mapping]]] = ..., tasks: _Optional[_Iterable[_Union[_objects_pb2.Task, _Mapping]]] = ..., clusters: _Optional[_Iterable[_Union[_objects_pb2.Cluster, _Mapping]]] = ..., secrets: _Optional[_Iterable[_Union[_objects_pb2.Secret, _Mapping]]] = ..., resources: _Optional[_Iterable[_Union[_objects_pb2.Resource, _Mapping]]] = ..., extensions: _Optional[_Iterable[_Union[_objects_pb2.Extension, _Mapping]]] = ..., configs: _Optional[_Iterable[_Union[_objects_pb2.Config, _Mapping]]] = ..., volumes: _Optional[_Iterable[_Union[_objects_pb2.Volume, _Mapping]]] = ...) -> None: ...

class ClusterSnapshot(_message.Message):
    __slots__ = ("members", "removed")
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    members: _containers.RepeatedCompositeFieldContainer[_raft_pb2.RaftMember]
    removed: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, members: _Optional[_Iterable[_Union[_raft_pb2.RaftMember, _Mapping]]] = ..., removed: _Optional[_Iterable[int]] = ...) -> None: ...

class Snapshot(_message.Message):
    __slots__ = ("version", "membership", "store")
    class Version(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        V0: _ClassVar[Snapshot.Version]
    V0: Snapshot.Version
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MEMBERSHIP_FIELD_NUMBER: _ClassVar[int]
    STORE_FIELD_NUMBER: _ClassVar[int]
    version: Snapshot.Version
    membership: ClusterSnapshot
    store: StoreSnapshot
    def __init__(self, version: _Optional[_Union[Snapshot.Version, str]] = ..., membership: _Optional[_Union[ClusterSnapshot, _Mapping]] = ..., store: _Optional[_Union[StoreSnapshot, _Mapping]] = ...) -> None: ...
