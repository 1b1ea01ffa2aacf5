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
