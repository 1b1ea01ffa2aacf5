"""The network keys: three for gossip and three for IPsec, distinguished by their Lamport times.

Nodes encrypt with the middle key, so all nodes know a key before any node uses it, and for some time afterwards. A
rotation adds a key and drops the oldest one. After one rotation no node encrypts with the key that it used before.
After two, all nodes encrypt with keys made since the first rotation. After three, no earlier key is left. Gossip and
IPsec share one clock, because nodes compare Lamport times without regard to the subsystem.

The leader rotates the keys every twelve hours (swarm/manager/cluster.py), and when a client requests it by an extension
of Control/UpdateCluster. Every session sends the keys to its node (swarm/manager/dispatcher).

(swarmkit: manager/keymanager/keymanager.go; libnetwork: agent.go)
"""

from __future__ import annotations

from random import Random

from swarm import api, defaults

SUBSYSTEM_GOSSIP = "networking:gossip"
SUBSYSTEM_IPSEC = "networking:ipsec"

_SUBSYSTEMS = (SUBSYSTEM_GOSSIP, SUBSYSTEM_IPSEC)
_KEY_BYTES = 16
_CLOCK_START_BITS = 16


def complete_keys(cluster: api.Cluster, rng: Random) -> bool:
    """Create the missing keys of a cluster that is being edited. Returns whether any were missing.

    Stock nodes crash with fewer than two keys for gossip or IPsec, so incomplete sets are completed too.
    """
    keys = list(cluster.network_bootstrap_keys)
    missing = [
        subsystem for subsystem in _SUBSYSTEMS for _ in range(_missing(sum(key.subsystem == subsystem for key in keys)))
    ]
    if not missing:
        return False
    if not keys and not cluster.encryption_key_lamport_clock:
        cluster.encryption_key_lamport_clock = rng.getrandbits(_CLOCK_START_BITS)
    for subsystem in missing:
        _add_key(cluster, subsystem, rng)
    return True


def rotate_keys(cluster: api.Cluster, rng: Random) -> None:
    """Add a key for gossip and one for IPsec; keep the newest three of each. ``cluster`` is being edited."""
    complete_keys(cluster, rng)
    kept: list[api.EncryptionKey] = []
    for subsystem in _SUBSYSTEMS:
        ring = [key for key in cluster.network_bootstrap_keys if key.subsystem == subsystem]
        ring.sort(key=lambda key: key.lamport_time)
        kept += ring[1 - defaults.NETWORK_KEYS_KEPT :]
    kept += [key for key in cluster.network_bootstrap_keys if key.subsystem not in _SUBSYSTEMS]
    clock = _clock(cluster)
    del cluster.network_bootstrap_keys[:]
    cluster.network_bootstrap_keys.extend(kept)
    cluster.encryption_key_lamport_clock = clock
    for subsystem in _SUBSYSTEMS:
        _add_key(cluster, subsystem, rng)


def incomplete(cluster: api.Cluster) -> bool:
    """Whether complete_keys would create keys."""
    present = [key.subsystem for key in cluster.network_bootstrap_keys]
    return any(_missing(present.count(subsystem)) for subsystem in _SUBSYSTEMS)


def _missing(count: int) -> int:
    return 0 if count >= 2 else defaults.NETWORK_KEYS_KEPT - count


def _clock(cluster: api.Cluster) -> int:
    times = (key.lamport_time for key in cluster.network_bootstrap_keys)
    return max(cluster.encryption_key_lamport_clock, *times, 0)


def _add_key(cluster: api.Cluster, subsystem: str, rng: Random) -> None:
    clock = _clock(cluster) + 1
    cluster.encryption_key_lamport_clock = clock
    cluster.network_bootstrap_keys.add(
        subsystem=subsystem,
        algorithm=api.EncryptionKey.AES_128_GCM,
        key=rng.randbytes(_KEY_BYTES),
        lamport_time=clock,
    )
