"""Checks of the addresses that a user wants for a network, with the texts of engines since 25.0.

Engines before 25.0 leave all but the form of the subnet to the managers.

(moby: api/types/network/ipam.go ValidateIPAM; go: net/netip)
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from typing import Any

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface


def is_cidr(text: str) -> bool:
    """What Go's ParseCIDR takes: an address and a number of bits; host bits may be set."""
    return _prefix(text) is not None


def ipam_error(configs: Iterable[Mapping[str, Any]], ipv6: bool) -> str:
    """What is wrong with the parsed members of IPAM.Config; empty: nothing. ipv6: addresses of IPv6 count."""
    errors = [error for config in configs for error in _config_errors(config, ipv6)]
    if not errors:
        return ""
    shown = errors[0] if len(errors) == 1 else "* " + "\n* ".join(errors)
    return f"invalid network config:\n{shown}"


def prefix_error(text: str) -> str:
    """Go's text for what is no prefix: newer engines read it with the body. Empty: it is one."""
    if _prefix(text) is not None:
        return ""
    address, slash, bits = text.rpartition("/")
    if not slash:
        return f"netip.ParsePrefix({_quoted(text)}): no '/'"
    try:
        most = ipaddress.ip_address(address).max_prefixlen
    except ValueError:
        return f"netip.ParsePrefix({_quoted(text)}): ParseAddr({_quoted(address)}): unable to parse IP"
    if bits.isascii() and bits.isdecimal() and str(int(bits[:9])) == bits and int(bits) > most:
        return f"netip.ParsePrefix({_quoted(text)}): prefix length out of range"
    return f"netip.ParsePrefix({_quoted(text)}): bad bits after slash: {_quoted(bits)}"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _config_errors(config: Mapping[str, Any], ipv6: bool) -> list[str]:
    subnet = _prefix(config.get("Subnet", ""))
    if subnet is None:
        return [f"invalid subnet {config.get('Subnet', '')}: invalid CIDR block notation"]
    if subnet.version == 6 and not ipv6:
        return []
    errors = []
    if subnet.ip != subnet.network.network_address:
        errors.append(f"invalid subnet {subnet}: it should be {subnet.network}")
    errors += _range_errors(config.get("IPRange", ""), subnet)
    if wrong := _address_error(config.get("Gateway", ""), subnet):
        errors.append(f"invalid gateway {config['Gateway']}: {wrong}")
    for name, address in config.get("AuxiliaryAddresses", {}).items():
        if wrong := _address_error(address, subnet):
            errors.append(f"invalid auxiliary address {name}: {wrong}")
    return errors


def _range_errors(text: str, subnet: _Interface) -> list[str]:
    if not text:
        return []
    part = _prefix(text)
    if part is None:
        return [f"invalid ip-range {text}: invalid CIDR block notation"]
    if part.version != subnet.version:
        return [f"invalid ip-range {text}: parent subnet is an IPv{subnet.version} block"]
    errors = []
    if part.network.prefixlen < subnet.network.prefixlen:
        errors.append(f"invalid ip-range {text}: CIDR block is bigger than its parent subnet {subnet}")
    if part.ip != part.network.network_address:
        errors.append(f"invalid ip-range {part}: it should be {part.network}")
    if not part.network.overlaps(subnet.network):
        errors.append(f"invalid ip-range {text}: parent subnet {subnet} doesn't contain ip-range")
    return errors


def _address_error(text: str, subnet: _Interface) -> str:
    if not text:
        return ""
    try:
        address: _Address = ipaddress.ip_address(text)
    except ValueError:
        return "invalid address"
    if address.version != subnet.version:
        return f"parent subnet is an IPv{subnet.version} block"
    return "" if address in subnet.network else f"parent subnet {subnet} doesn't contain this address"


def _prefix(text: str) -> _Interface | None:
    """An address with its prefix length in plain digits; None: it is none."""
    address, slash, bits = text.partition("/")
    if not slash or "%" in address or not (bits.isascii() and bits.isdecimal()) or len(bits) > 3:
        return None
    try:
        return ipaddress.ip_interface(text)
    except ValueError:
        return None
