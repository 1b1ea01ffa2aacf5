"""The keys of the networks: three for each of gossip and IPsec, told apart by their Lamport time.

Nodes encrypt with the middle key, so that all nodes know a key before one uses it, and for some time afterwards. A
rotation adds a key and drops the oldest. After one rotation no node encrypts with the key that it used before; after
two all encrypt with keys made since the first; after three no key is left that was known before them. Both purposes
share one clock, because nodes compare Lamport times without looking at the purpose.

The leader rotates every twelve hours (swarm/manager/cluster.py) and when a client asks for it, with a mark on
Control/UpdateCluster. Every session tells its node of the keys (swarm/manager/dispatcher).

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
    """Make the missing keys of a cluster that is being edited. Returns whether any were missing.

    Stock nodes crash with fewer than two keys for gossip or IPsec, so such a set is completed as well.
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
    """Add a key for each of gossip and IPsec and drop the oldest beyond three. ``cluster`` is being edited."""
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
    """Whether keys are missing that complete_keys would make."""
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
