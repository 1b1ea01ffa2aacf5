"""The host's side of the routing mesh: published ports of this host lead into the ingress network's namespace.

Only the destination is translated, so that the client's address stays. A pair of interfaces joins the two namespaces,
with addresses that no route of the host can meet: whatever networks the host has, the ingress network may be equal.

(libnetwork: service_linux.go programIngress)
"""

from __future__ import annotations

from collections.abc import Collection

from overlay.rules import HOST_SIDE, INGRESS_SIDE, TABLE

HOST_LINK = "swing0"
FORWARD_CHAIN = "SIDESWARM-FORWARD"
PREFIX_BITS = 30


def host_script(ports: Collection[tuple[str, int]]) -> str:
    """The script for nft that makes the host's table anew, in one transaction. Without ports it takes it away.

    ports: ("tcp", 80) and so on.
    """
    lines = [f"table ip {TABLE} {{ }}", f"delete table ip {TABLE}"]
    if not ports:
        return "\n".join(lines) + "\n"
    published = [f"{protocol} . {port}" for protocol, port in sorted(set(ports))]
    lead = f"fib daddr type local meta l4proto . th dport @published dnat to {INGRESS_SIDE}"
    lines += [
        f"table ip {TABLE} {{",
        f"  set published {{ type inet_proto . inet_service; elements = {{ {', '.join(published)} }}; }}",
        # before Docker's own rules, which have the priority -100
        f"  chain pre {{ type nat hook prerouting priority -110; policy accept; {lead}; }}",
        f"  chain out {{ type nat hook output priority -110; policy accept; {lead}; }}",
        "  chain post { type nat hook postrouting priority 90; policy accept;",
        f'    oifname "{HOST_LINK}" ip saddr 127.0.0.0/8 snat to {HOST_SIDE}',
        f'    iifname "{HOST_LINK}" masquerade',
        "  }",
        "}",
    ]
    return "\n".join(lines) + "\n"


def forward_rules() -> list[list[str]]:
    """The iptables rules that let the mesh's packets be forwarded where Docker's policy is to drop them.

    An accept of nftables elsewhere would not overrule that policy.
    """
    return [["-i", HOST_LINK, "-j", "ACCEPT"], ["-o", HOST_LINK, "-j", "ACCEPT"]]
