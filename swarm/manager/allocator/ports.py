"""Published ports: who holds which ingress port, and which ports a service gets.

The table follows from the services in the store alone and is updated service by service, so no port can leak.

(swarmkit: manager/allocator/portallocator.go)
"""

from __future__ import annotations

from swarm import api, defaults

_Port = tuple[int, int]  # protocol, published port
_DYNAMIC = range(defaults.DYNAMIC_PORT_FIRST, defaults.DYNAMIC_PORT_LAST + 1)


class PortsExhausted(Exception):
    """A port cannot be had; the text is for the user."""


class PortTable:
    """Ingress ports in use in the whole cluster, by protocol and number."""

    def __init__(self) -> None:
        self._holders: dict[_Port, dict[str, None]] = {}
        self._ports: dict[str, tuple[_Port, ...]] = {}

    def account(self, service_id: str, service: api.Service | None) -> None:
        """Replace what is known of this service by what it holds now. None: it is gone."""
        ports: tuple[_Port, ...] = ()
        if service is not None:
            ports = tuple(
                (port.protocol, port.published_port)
                for port in service.endpoint.ports
                if port.publish_mode == api.PortConfig.INGRESS
            )
        if self._ports.get(service_id, ()) == ports:
            return
        for key in self._ports.pop(service_id, ()):
            holders = self._holders.get(key, {})
            holders.pop(service_id, None)
            if not holders:
                self._holders.pop(key, None)
        if ports:
            self._ports[service_id] = ports
            for key in ports:
                self._holders.setdefault(key, {})[service_id] = None

    def state(self) -> dict[_Port, list[str]]:
        """Ports and the IDs of their holders, in a form that can be compared; for the allocator's audit."""
        return {key: sorted(self._holders[key]) for key in sorted(self._holders)}

    def holder(self, protocol: int, port: int, besides: str) -> str | None:
        """ID of another service that holds the port."""
        return next((i for i in self._holders.get((protocol, port), ()) if i != besides), None)

    def choose(self, service: api.Service) -> list[api.PortConfig]:
        """The ports that the service is to have, in the order of its spec; nothing is taken yet.

        A dynamic port (published port 0) stays what it was while the port's name, protocol and target stay. Host ports
        are copied as they are; only their node has to have them free. Raises PortsExhausted.
        """
        wanted = service.spec.endpoint.ports
        taken: dict[_Port, None] = {}
        for port in wanted:
            if port.publish_mode == api.PortConfig.INGRESS and port.published_port:
                other = self.holder(port.protocol, port.published_port, service.id)
                if other is not None:
                    text = f"port '{port.published_port}' is already in use by service '{other}' as an ingress port"
                    raise PortsExhausted(text)
                taken[port.protocol, port.published_port] = None
        before: dict[tuple[str, int, int], list[int]] = {}
        for port in service.endpoint.ports:
            if port.publish_mode == api.PortConfig.INGRESS:
                before.setdefault((port.name, port.protocol, port.target_port), []).append(port.published_port)
        out = []
        for port in wanted:
            choice = api.PortConfig()
            choice.CopyFrom(port)
            if port.publish_mode == api.PortConfig.INGRESS and not port.published_port:
                old = before.get((port.name, port.protocol, port.target_port), [])
                choice.published_port = self._dynamic(service.id, port.protocol, old, taken)
                taken[port.protocol, choice.published_port] = None
            out.append(choice)
        return out

    def _dynamic(self, service_id: str, protocol: int, old: list[int], taken: dict[_Port, None]) -> int:
        number: int
        for number in (*(port for port in old if port in _DYNAMIC), *_DYNAMIC):
            if (protocol, number) not in taken and self.holder(protocol, number, service_id) is None:
                return number
        raise PortsExhausted("no free port left in the dynamic port range")
