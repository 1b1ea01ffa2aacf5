"""The RPC table, read from the descriptors: path, types, streaming, and which certificate roles may call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from swarm.api import (
    authorization_pb2,
    ca_pb2,
    control_pb2,
    discovery_pb2,
    dispatcher_pb2,
    health_pb2,
    logbroker_pb2,
    raft_pb2,
    resource_pb2,
    watch_pb2,
)

Req = TypeVar("Req", bound=Message)
Res = TypeVar("Res", bound=Message)


@dataclass(frozen=True, eq=False)
class Method(Generic[Req, Res]):
    """One RPC. ``name`` is "Service/Method"; roles holds certificate OUs; insecure: no certificate needed.

    There is one object per RPC, in METHODS and under its constant in swarm.api.rpc, which knows the two types.
    """

    name: str
    path: str
    request: type[Req]
    response: type[Res]
    client_streaming: bool
    server_streaming: bool
    roles: frozenset[str]
    insecure: bool

    def checked_request(self, message: Message | None) -> Req:
        """The same message, checked to be a request of this method. Raises TypeError."""
        if not isinstance(message, self.request):
            raise TypeError(f"{self.name} was asked with {type(message).__name__}")
        return message

    def checked_response(self, message: Message) -> Res:
        """The same message, checked to be a response of this method. Raises TypeError."""
        if not isinstance(message, self.response):
            raise TypeError(f"{self.name} was answered with {type(message).__name__}")
        return message


AnyMethod = Method[Any, Any]
"""A method whose types are not known where it is used."""


def _row(method: MethodDescriptor) -> AnyMethod:
    service = method.containing_service
    rule: authorization_pb2.TLSAuthorization = method.GetOptions().Extensions[authorization_pb2.tls_authorization]  # type: ignore[index]
    return Method(
        name=f"{service.name}/{method.name}",
        path=f"/{service.full_name}/{method.name}",
        request=message_factory.GetMessageClass(method.input_type),
        response=message_factory.GetMessageClass(method.output_type),
        client_streaming=method.client_streaming,
        server_streaming=method.server_streaming,
        roles=frozenset(rule.roles),
        insecure=rule.insecure,
    )


_FILES = (
    ca_pb2,
    control_pb2,
    discovery_pb2,
    dispatcher_pb2,
    health_pb2,
    logbroker_pb2,
    raft_pb2,
    resource_pb2,
    watch_pb2,
)

METHODS: dict[str, AnyMethod] = {
    row.name: row
    for file in _FILES
    for service in file.DESCRIPTOR.services_by_name.values()
    for row in map(_row, service.methods)
}

BY_PATH: dict[str, AnyMethod] = {row.path: row for row in METHODS.values()}
