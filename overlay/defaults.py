"""Limits and times of the overlay, with their units in the names."""

from __future__ import annotations

VXLAN_OVERHEAD_BYTES = 50
"""What VXLAN takes of the underlay's MTU (libnetwork: drivers/overlay/ov_network.go)."""
