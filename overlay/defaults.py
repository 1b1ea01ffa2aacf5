"""Limits and times of the overlay, with their units in the names."""

from __future__ import annotations

VXLAN_OVERHEAD_BYTES = 50
"""What VXLAN takes of the underlay's MTU (libnetwork: drivers/overlay/ov_network.go)."""

UNDERLAY_MTU_BYTES = 1500  # where it cannot be known

NETLINK_MESSAGES_PER_BATCH = 100  # in one datagram
NETLINK_DUMP_ATTEMPTS_MAX = 5  # of a dump that changes while it is read

RECONCILE_RETRY_S = 0.5  # the first pause before a network that failed is tried again; it doubles
RECONCILE_RETRY_MAX_S = 30.0
KERNEL_CHECK_S = 5.0  # between two looks whether somebody changed the kernel under us
JOIN_WAITS_S = 5.0  # of a container, for what the managers say of its network
VNI_WAITS_S = 2.0  # for the kernel to let go of a network identifier that is not used any more

PLUGIN_REQUEST_BYTES_MAX = 1 << 20
PLUGIN_SHUTDOWN_S = 2.0
DNS_TTL_S = 5
"""How long clients may keep an answer about a name of ours (stock: 600 s). dockerd keeps none, many programs do."""

DNS_UDP_BYTES = 1_232
"""Of an answer by UDP to a client with EDNS: what no path has to fragment (DNS flag day 2020)."""

DNS_QUERY_RECORDS_MAX = 8
"""Records beside the question of a query. Real ones have one (EDNS), or two (signed)."""

DNS_QUERY_BYTES_MAX = 4_096
"""Of one query by TCP."""

DNS_BATCH_QUERIES = 64
"""Queries by UDP that are read at once before others have their turn."""

DNS_FORWARDS_MAX = 1_024
"""Queries that wait for the host's resolvers, of all clients (libnetwork: resolver.go maxConcurrent)."""

DNS_FORWARDS_PER_CLIENT_MAX = 128
"""The same of one client."""

DNS_CONNECTIONS_MAX = 512
"""TCP connections of all clients."""

DNS_CONNECTIONS_PER_CLIENT_MAX = 16
"""TCP connections of one client."""

DNS_ACCEPT_PAUSE_S = 1.0
"""How long connections wait when the process has no descriptors left."""

DNS_IDLE_S = 10.0
"""How long a client's TCP connection may be silent, and how long it may take to read an answer."""

DNS_FORWARD_S = 3.5
"""Of a forwarded query in all. dockerd in front of us gives up after 4 s (libnetwork: resolver.go extIOTimeout)."""

DNS_NEXT_SERVER_S = 1.0
"""How long one of the host's resolvers may be silent until the next one is asked too."""

DNS_SERVERS_MAX = 3
"""Of the host's resolvers; more are not used (glibc: MAXNS)."""

DNS_HOST_CHECK_S = 1.0
"""How often the list of the host's resolvers is looked at, when there are queries."""
