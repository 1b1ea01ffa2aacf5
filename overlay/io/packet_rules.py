"""Keeps the packet rules of networks' namespaces as overlay/balance.py wants them.

The first time, and whenever somebody else changed the rules, a namespace gets its tables anew, in one transaction that
no packet sees half done. After that only elements of maps change. Connections that are open go on: the kernel remembers
where they lead. Only UDP has no end by which it would forget; its flows to backends that are gone are deleted.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

from overlay import rules
from overlay.balance import Balance, changes, gone_backends
from overlay.errors import OverlayError
from overlay.io.conntrack import forget_udp
from overlay.io.namespaces import in_namespace
from overlay.io.nfnetlink import Generations

NFT = ("nft", "-f", "-")


@dataclass(slots=True)
class _Written:
    """What a namespace has, and the generation that came of it."""

    generations: Generations
    namespace: int
    balance: Balance | None = None
    generation: int = -1


class PacketRules:
    """See the module. Functions block for milliseconds; they may be called from any thread, one at a time."""

    def __init__(self) -> None:
        self._written: dict[str, _Written] = {}

    def reconcile(self, network_id: str, namespace: int, balance: Balance) -> None:
        """Make the rules of a network's namespace (a file descriptor) right. Raises OverlayError."""
        known = self._written.get(network_id)
        if known is None or known.namespace != namespace:
            self.forget(network_id)
            known = self._written[network_id] = _Written(Generations(namespace), namespace)
        try:
            self._write(known, balance)
        except OSError as error:
            raise OverlayError(f"packet rules of network {network_id}: {error.strerror or error}") from error
        except OverlayError as error:
            known.balance = None
            raise OverlayError(f"packet rules of network {network_id}: {error}") from error

    def check(self, network_id: str) -> bool:
        """Whether nobody has changed the rules of a network since they were written."""
        known = self._written.get(network_id)
        if known is None or known.balance is None:
            return False
        try:
            return known.generations.current() == known.generation
        except OSError:
            return False

    def forget(self, network_id: str) -> None:
        """The namespace is about to go, or has gone."""
        known = self._written.pop(network_id, None)
        if known is not None:
            known.generations.close()

    def close(self) -> None:
        """Let go of everything; the rules stay."""
        for network_id in list(self._written):
            self.forget(network_id)

    def _write(self, known: _Written, balance: Balance) -> None:
        before = known.generations.current()
        old = known.balance
        if old is None or old.rules != balance.rules or before != known.generation:
            script = rules.script_of(balance.rules, balance.maps)
        else:
            script = "".join(
                f"{line}\n"
                for change in changes(old.maps, balance.maps)
                for line in (
                    *rules.removals(change.family, change.name, change.removed),
                    *rules.additions(change.family, change.name, change.added),
                )
            )
        if script:
            run_nft(known.namespace, script)
            if old is not None and (gone := gone_backends(old.maps, balance.maps)):
                in_namespace(known.namespace, lambda: forget_udp(gone))
        after = known.generations.current()
        known.balance = balance
        # more than one step: somebody else changed something at the same time, so check() shall find it
        known.generation = after if after <= before + 1 else before


def run_nft(namespace: int, script: str) -> None:
    """Have nft perform a script, in one transaction, in a namespace. Raises OverlayError with nft's words."""

    def run() -> subprocess.CompletedProcess[str]:
        # the child begins in the namespace of the thread that makes it
        return subprocess.run(NFT, input=script, capture_output=True, text=True, timeout=60, check=False)

    try:
        done = in_namespace(namespace, run)
    except FileNotFoundError:
        raise OverlayError("the command nft is missing: install nftables") from None
    except subprocess.TimeoutExpired:
        raise OverlayError("nft did not end") from None
    if done.returncode:
        raise OverlayError(" ".join(done.stderr.split())[:500] or f"nft ended with {done.returncode}")
