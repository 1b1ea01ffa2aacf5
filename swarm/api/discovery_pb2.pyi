from swarm.api import authorization_pb2 as _authorization_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WatchNetworksRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WatchNetworksResponse(_message.Message):
    __slots__ = ("changes", "complete", "version", "local")
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LOCAL_FIELD_NUMBER: _ClassVar[int]
    changes: _containers.RepeatedCompositeFieldContainer[NetworkChange]
    complete: bool
    version: int
    local: LocalNodeRecord
    def __init__(self, changes: _Optional[_Iterable[_Union[NetworkChange, _Mapping]]] = ..., complete: _Optional[bool] = ..., version: _Optional[int] = ..., local: _Optional[_Union[LocalNodeRecord, _Mapping]] = ...) -> None: ...

class LocalNodeRecord(_message.Message):
    __slots__ = ("node_id", "address", "vxlan_port")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    VXLAN_PORT_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    address: str
    vxlan_port: int
    def __init__(self, node_id: _Optional[str] = ..., address: _Optional[str] = ..., vxlan_port: _Optional[int] = ...) -> None: ...

class NetworkChange(_message.Message):
    __slots__ = ("network_id", "network", "peer", "service", "endpoint", "network_removed", "peer_removed", "service_removed", "endpoint_removed")
    NETWORK_ID_FIELD_NUMBER: _ClassVar[int]
    NETWORK_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    NETWORK_REMOVED_FIELD_NUMBER: _ClassVar[int]
    PEER_REMOVED_FIELD_NUMBER: _ClassVar[int]
    SERVICE_REMOVED_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_REMOVED_FIELD_NUMBER: _ClassVar[int]
    network_id: str
    network: NetworkRecord
    peer: PeerRecord
    service: ServiceRecord
    endpoint: EndpointRecord
    network_removed: bool
    peer_removed: str
    service_removed: str
    endpoint_removed: str
    def __init__(self, network_id: _Optional[str] = ..., network: _Optional[_Union[NetworkRecord, _Mapping]] = ..., peer: _Optional[_Union[PeerRecord, _Mapping]] = ..., service: _Optional[_Union[ServiceRecord, _Mapping]] = ..., endpoint: _Optional[_Union[EndpointRecord, _Mapping]] = ..., network_removed: _Optional[bool] = ..., peer_removed: _Optional[str] = ..., service_removed: _Optional[str] = ..., endpoint_removed: _Optional[str] = ...) -> None: ...

class NetworkRecord(_message.Message):
    __slots__ = ("name", "subnets", "underlay_mtu", "ingress", "internal", "encrypted")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SUBNETS_FIELD_NUMBER: _ClassVar[int]
    UNDERLAY_MTU_FIELD_NUMBER: _ClassVar[int]
    INGRESS_FIELD_NUMBER: _ClassVar[int]
    INTERNAL_FIELD_NUMBER: _ClassVar[int]
    ENCRYPTED_FIELD_NUMBER: _ClassVar[int]
    name: str
    subnets: _containers.RepeatedCompositeFieldContainer[SubnetRecord]
    underlay_mtu: int
    ingress: bool
    internal: bool
    encrypted: bool
    def __init__(self, name: _Optional[str] = ..., subnets: _Optional[_Iterable[_Union[SubnetRecord, _Mapping]]] = ..., underlay_mtu: _Optional[int] = ..., ingress: _Optional[bool] = ..., internal: _Optional[bool] = ..., encrypted: _Optional[bool] = ...) -> None: ...

class SubnetRecord(_message.Message):
    __slots__ = ("pool", "gateway", "vni")
    POOL_FIELD_NUMBER: _ClassVar[int]
    GATEWAY_FIELD_NUMBER: _ClassVar[int]
    VNI_FIELD_NUMBER: _ClassVar[int]
    pool: str
    gateway: str
    vni: int
    def __init__(self, pool: _Optional[str] = ..., gateway: _Optional[str] = ..., vni: _Optional[int] = ...) -> None: ...

class PeerRecord(_message.Message):
    __slots__ = ("node_id", "hostname", "address", "load_balancer", "suspected", "stock")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    HOSTNAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    LOAD_BALANCER_FIELD_NUMBER: _ClassVar[int]
    SUSPECTED_FIELD_NUMBER: _ClassVar[int]
    STOCK_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    hostname: str
    address: str
    load_balancer: str
    suspected: bool
    stock: bool
    def __init__(self, node_id: _Optional[str] = ..., hostname: _Optional[str] = ..., address: _Optional[str] = ..., load_balancer: _Optional[str] = ..., suspected: _Optional[bool] = ..., stock: _Optional[bool] = ...) -> None: ...

class ServiceRecord(_message.Message):
    __slots__ = ("service_id", "name", "virtual_ip", "aliases", "ports", "sticky", "local_first")
    SERVICE_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    VIRTUAL_IP_FIELD_NUMBER: _ClassVar[int]
    ALIASES_FIELD_NUMBER: _ClassVar[int]
    PORTS_FIELD_NUMBER: _ClassVar[int]
    STICKY_FIELD_NUMBER: _ClassVar[int]
    LOCAL_FIRST_FIELD_NUMBER: _ClassVar[int]
    service_id: str
    name: str
    virtual_ip: str
    aliases: _containers.RepeatedScalarFieldContainer[str]
    ports: _containers.RepeatedCompositeFieldContainer[PublishedPort]
    sticky: bool
    local_first: bool
    def __init__(self, service_id: _Optional[str] = ..., name: _Optional[str] = ..., virtual_ip: _Optional[str] = ..., aliases: _Optional[_Iterable[str]] = ..., ports: _Optional[_Iterable[_Union[PublishedPort, _Mapping]]] = ..., sticky: _Optional[bool] = ..., local_first: _Optional[bool] = ...) -> None: ...

class PublishedPort(_message.Message):
    __slots__ = ("protocol", "published", "target")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    PUBLISHED_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    protocol: str
    published: int
    target: int
    def __init__(self, protocol: _Optional[str] = ..., published: _Optional[int] = ..., target: _Optional[int] = ...) -> None: ...

class EndpointRecord(_message.Message):
    __slots__ = ("endpoint_id", "node_id", "address", "readiness", "service_id", "name", "aliases")
    class Readiness(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STARTING: _ClassVar[EndpointRecord.Readiness]
        READY: _ClassVar[EndpointRecord.Readiness]
        DRAINING: _ClassVar[EndpointRecord.Readiness]
    STARTING: EndpointRecord.Readiness
    READY: EndpointRecord.Readiness
    DRAINING: EndpointRecord.Readiness
    ENDPOINT_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    READINESS_FIELD_NUMBER: _ClassVar[int]
    SERVICE_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ALIASES_FIELD_NUMBER: _ClassVar[int]
    endpoint_id: str
    node_id: str
    address: str
    readiness: EndpointRecord.Readiness
    service_id: str
    name: str
    aliases: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, endpoint_id: _Optional[str] = ..., node_id: _Optional[str] = ..., address: _Optional[str] = ..., readiness: _Optional[_Union[EndpointRecord.Readiness, str]] = ..., service_id: _Optional[str] = ..., name: _Optional[str] = ..., aliases: _Optional[_Iterable[str]] = ...) -> None: ...
