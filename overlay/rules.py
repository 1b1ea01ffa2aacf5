"""The packet rules of a network's namespace: a constant number of rules that look things up in named maps.

The rules say how packets are translated; the maps, which change all the time, say where to (overlay/balance.py). What
is led to several backends has *slots*: a random number, or for sticky services one made of the client's address,
chooses the slot, and each backend has an equal number of them. How many slots there are is part of a rule, so there is
a map for each of a few numbers, the *tiers*; each address or port is in the one that fits its backends. All lookups are
of exact keys in hash tables. (Maps of intervals need fewer elements, but the kernel copies them for every change.)

The address that a client connects from is kept everywhere, with three exceptions: a container that reaches itself by a
virtual address sees the gateway; backends on stock nodes see the load balancer of the node that was asked, because
stock nodes do not steer replies; and processes of a node that ask at 127.0.0.1 are seen as 169.254.253.1.

The way of a reply through the routing mesh: the entry node only rewrites the destination. The backend's node marks the
connection with the node that it came from (@nodes), and sends replies to that node's hardware address (@nodemac), where
the translation is undone.

(libnetwork: service_linux.go; nft(8); wiki.nftables.org, "Load balancing")
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

TABLE = "sideswarm"
PROTOCOLS = ("tcp", "udp", "sctp")
UPLINK = "up0"
TIERS = (1, 16, 256, 4096, 65536)
"""Numbers of slots."""

HOST_SIDE, INGRESS_SIDE = IPv4Address("169.254.253.1"), IPv4Address("169.254.253.2")


Field = IPv4Address | int | str
"""A part of a key or of a value. A string is a hardware address."""

Elements = Mapping[tuple[Field, ...], tuple[Field, ...]]
"""What a map holds. Of a set, the values are empty."""

Maps = Mapping[tuple[str, str], Elements]
"""By family ("ip" or "bridge") and name of the map."""


@dataclass(frozen=True, slots=True)
class Shape:
    """One map or set. key, value: types as nft(8) writes them; no value: a set. counted: each element has a counter."""

    family: str
    name: str
    key: str
    value: str = ""
    counted: bool = False

    @property
    def text(self) -> str:
        """Its declaration."""
        kind, value = ("map", f" : {self.value}") if self.value else ("set", "")
        counter = "counter; " if self.counted else ""
        return f"  {kind} {self.name} {{ typeof {self.key}{value}; {counter}}}"


@dataclass(frozen=True, slots=True)
class RuleSet:
    """What the rules of one namespace depend on besides their maps.

    mtu: of the overlay, in bytes. ingress: the network is that of the routing mesh. load_balancer: this node's address
    there; without one, stock nodes' backends are not reached through this node.
    """

    pools: tuple[IPv4Network, ...]
    mtu: int
    ingress: bool = False
    load_balancer: IPv4Address | None = None


def _slot(tier: int, sticky: bool = False) -> str:
    """How nft writes the choice of a slot."""
    return f"jhash ip saddr mod {tier}" if sticky else f"numgen random mod {tier}"


def _keyed(key: str, tier: int, sticky: bool = False) -> str:
    """A key with its slot; without, if there is only one."""
    return key if tier == 1 else f"{key} . {_slot(tier, sticky)}"


def _led(name: str, key: str, value: str) -> dict[int, Shape]:
    """The maps of one kind of destination, by tier. Their type is that of a random slot, also for sticky ones."""
    return {tier: Shape("ip", f"{name}_{tier}", _keyed(key, tier), value, counted=True) for tier in TIERS}


def _redirect(protocol: str) -> Shape:
    return Shape("ip", f"redirect_{protocol}", f"ip daddr . {protocol} dport", f"ip daddr . {protocol} dport")


VIRTUAL = _led("virtual", "ip daddr", "ip daddr")
STICKY = _led("sticky", "ip daddr", "ip daddr")
OWN = Shape("ip", "own", "ip saddr . ip daddr", "ip saddr")
NODES = Shape("ip", "nodes", "ether saddr", "meta mark")
STOCK = Shape("ip", "stock", "ip daddr")
NODE_MACS = Shape("bridge", "nodemac", "meta mark", "ether daddr")
MESH = {one: _led(f"mesh_{one}", f"{one} dport", f"ip daddr . {one} dport") for one in PROTOCOLS}
MESH_STICKY = {one: _led(f"mesh_sticky_{one}", f"{one} dport", f"ip daddr . {one} dport") for one in PROTOCOLS}
REDIRECT = {protocol: _redirect(protocol) for protocol in PROTOCOLS}


def shapes_of(rules: RuleSet) -> tuple[Shape, ...]:
    """The maps that a namespace has."""
    virtual = (*VIRTUAL.values(), *STICKY.values(), OWN)
    if not rules.ingress:
        return virtual
    mesh = [shape for led in (*MESH.values(), *MESH_STICKY.values()) for shape in led.values()]
    return (*virtual, NODES, STOCK, NODE_MACS, *mesh, *REDIRECT.values())


def script_of(rules: RuleSet, maps: Maps) -> str:
    """The script for nft that makes the tables of a namespace anew, with all elements, in one transaction."""
    families = ("ip", "bridge") if rules.ingress else ("ip",)
    lines = [line for family in families for line in _table(family, rules)]
    for (family, name), elements in maps.items():
        lines += additions(family, name, elements)
    return "\n".join(lines) + "\n"


def additions(family: str, name: str, elements: Elements) -> list[str]:
    """Lines that add elements to a map."""
    if not elements:
        return []
    words = [f"{_words(key)} : {_words(value)}" if value else _words(key) for key, value in elements.items()]
    return [f"add element {family} {TABLE} {name} {{ {', '.join(words)} }}"]


def removals(family: str, name: str, elements: Elements) -> list[str]:
    """Lines that take elements out of a map."""
    if not elements:
        return []
    return [f"delete element {family} {TABLE} {name} {{ {', '.join(map(_words, elements))} }}"]


def _words(fields: tuple[Field, ...]) -> str:
    return " . ".join(map(str, fields))


def _table(family: str, rules: RuleSet) -> list[str]:
    chains = _ip_chains(rules) if family == "ip" else _BRIDGE_CHAINS
    declared = [shape.text for shape in shapes_of(rules) if shape.family == family]
    return [
        f"table {family} {TABLE} {{ }}",  # so that there is one to delete
        f"delete table {family} {TABLE}",
        f"table {family} {TABLE} {{",
        *declared,
        *chains,
        "}",
    ]


def _ip_chains(rules: RuleSet) -> list[str]:
    translate = [f"dnat to {_keyed('ip daddr', tier)} map @{shape.name}" for tier, shape in VIRTUAL.items()]
    translate += [f"dnat to {_keyed('ip daddr', tier, True)} map @{shape.name}" for tier, shape in STICKY.items()]
    source = ["snat to ip saddr . ip daddr map @own"]
    if not rules.ingress:
        return [*_chain("pre", "nat hook prerouting priority dstnat", translate), *_source(source)]
    for sticky, mesh in ((False, MESH), (True, MESH_STICKY)):
        for protocol, led in mesh.items():
            translate += [
                f'iifname "{UPLINK}" dnat ip to {_keyed(f"{protocol} dport", tier, sticky)} map @{shape.name}'
                for tier, shape in led.items()
            ]
    translate += [f'iifname "br0" dnat ip to ip daddr . {one} dport map @redirect_{one}' for one in PROTOCOLS]
    pools = ", ".join(map(str, rules.pools))
    source.append(f'iifname "br0" oifname "{UPLINK}" ip saddr {{ {pools} }} masquerade')
    if rules.load_balancer is not None:
        source.append(f'oifname "br0" ip daddr @stock snat to {rules.load_balancer}')
    steer = [
        "ct direction original ct mark 0 ct mark set ether saddr map @nodes",
        "ct direction reply ct mark != 0 meta mark set ct mark",
    ]
    clamp = [
        f'iifname "{UPLINK}" tcp flags syn / syn,rst tcp option maxseg size set rt mtu',
        f'oifname "{UPLINK}" tcp flags syn / syn,rst tcp option maxseg size set {rules.mtu - 40}',
    ]
    return [
        *_chain("steer", "filter hook prerouting priority -150", steer),
        *_chain("pre", "nat hook prerouting priority dstnat", translate),
        *_chain("clamp", "filter hook forward priority -150", clamp),
        *_source(source),
    ]


def _source(rules: list[str]) -> list[str]:
    return _chain("post", "nat hook postrouting priority srcnat", rules)


def _chain(name: str, hook: str, rules: list[str]) -> list[str]:
    return [f"  chain {name} {{ type {hook}; policy accept;", *(f"    {rule}" for rule in rules), "  }"]


# behind br_netfilter, which has the priority 0
_BRIDGE_CHAINS = _chain(
    "pre", "filter hook prerouting priority 100", ["meta mark != 0 ether daddr set meta mark map @nodemac"]
)
