"""Dialling a peer: one dial at a time, its addresses staggered, the first to answer wins.

The rule: a dial ends in time, leaves no task and no socket behind, and says why each address
failed. Addresses are tried `STAGGER_S` apart, or as soon as the one before has failed (RFC 8305,
section 5).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from p2p.address_book import AddressBook
from p2p.connection import Transport
from p2p.errors import DialFailed, NetworkError, PeerMismatch
from p2p.identity import PeerId
from p2p.limits import Limits
from p2p.multiaddress import Address

STAGGER_S = 0.25
"""The recommended connection attempt delay of RFC 8305."""


class Dialer:
    """The dials of one switch."""

    def __init__(self, transport: Transport, book: AddressBook, limits: Limits) -> None:
        self._transport = transport
        self._book = book
        self._limits = limits
        self._places = trio.Semaphore(limits.dials_concurrent_max)
        self._dials: dict[PeerId, tuple[trio.Lock, int]] = {}

    async def dial(
        self, peer_id: PeerId, addresses: Sequence[Address], is_connected: Callable[[], bool]
    ) -> None:
        """Connect to `peer_id` at one of `addresses`; returns at once when another call has.

        Raises:
            DialFailed: none answered in `dial_timeout_s`. PeerMismatch: all who did were others.
        """
        lock, waiting = self._dials.get(peer_id, (trio.Lock(), 0))
        self._dials[peer_id] = (lock, waiting + 1)
        try:
            async with lock, self._places:
                if not is_connected():
                    await self._dial_any(addresses)
        finally:
            lock, waiting = self._dials.pop(peer_id)
            if waiting > 1:
                self._dials[peer_id] = (lock, waiting - 1)

    async def _dial_any(self, addresses: Sequence[Address]) -> None:
        failures: list[tuple[Address, str, bool]] = []
        has_connected = False

        async def attempt(address: Address, failed: trio.Event, scope: trio.CancelScope) -> None:
            nonlocal has_connected
            try:
                await self._transport.dial(address)
            except NetworkError as error:
                is_mismatch = isinstance(error, PeerMismatch)
                if is_mismatch:
                    self._book.forget(address)
                failures.append((address, str(error), is_mismatch))
                failed.set()
            else:
                self._book.confirm(address)
                has_connected = True
                scope.cancel()

        with trio.move_on_after(self._limits.dial_timeout_s):
            async with trio.open_nursery() as nursery:
                for address in addresses:
                    failed = trio.Event()
                    nursery.start_soon(attempt, address, failed, nursery.cancel_scope)
                    with trio.move_on_after(STAGGER_S):
                        await failed.wait()
        if has_connected:
            return
        reasons = "; ".join(
            reason if str(address) in reason else f"{address}: {reason}"
            for address, reason, _ in failures
        )
        if failures and all(is_mismatch for _, _, is_mismatch in failures):
            raise PeerMismatch(reasons)
        raise DialFailed(reasons or f"no answer in {self._limits.dial_timeout_s:g} s")


__all__ = ["Dialer"]
