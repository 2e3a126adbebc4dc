"""What a node does on the ledger by itself: enter, announce, publish weights, leave jail.

Rule: everything is decided from the last final state, once per epoch, and sent again only in the
next epoch when it did not take effect; so a node never floods the network with its own wishes. The
owner key is used for nothing but the proof of work that enters the table.
"""

import logging
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

import trio

from consensus.account import Announcement
from consensus.params import WEIGHT_ONE, Parameters
from consensus.state import State
from consensus.transaction import (
    SALT_BYTES,
    Announce,
    CommitWeights,
    Content,
    RevealWeights,
    SetWeights,
    Subscribe,
    Unjail,
    commitment_of,
)
from consensus.types import AccountId, Epoch, PeerKey, Uid
from consensus.weights import Row, rounded_row
from consensus.work import ANCESTOR_DEPTH_MAX, find_work
from node.errors import TransactionRefused
from p2p.identity import PeerId

logger = logging.getLogger("agora.membership")

SELF_WEIGHT_DIVISOR: Final = 16  # w_ii = 1/16: pays the fees
SCORE_ONE: Final = 2**32  # scores become integers of this scale before they become a row
WORK_TRIES: Final = 100_000  # in one slice; a twentieth of a second
ANCESTOR_MARGIN: Final = 2  # deeper than the rule asks, so that every node has it final
AGE_MAX: Final = ANCESTOR_DEPTH_MAX // 2  # older work would expire on its way


class Desk(Protocol):
    """What membership needs of the node."""

    @property
    def state(self) -> State:
        """After the last final block."""

    async def wait_for_block(self) -> None:
        """Return after the next final block."""

    async def submit(self, content: Content) -> None:
        """Sign and publish; raises TransactionRefused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Hidden:
    """A committed row that waits for its epoch to be shown."""

    epoch: Epoch
    salt: bytes
    row: Row


class Membership:
    """One account's own doings. `scores` gives each peer's share of worth, summing to 1."""

    def __init__(
        self,
        desk: Desk,
        parameters: Parameters,
        *,
        owner: AccountId,
        peer_key: PeerKey,
        announcement: Announcement,
        scores: Callable[[], Mapping[PeerId, float]],
    ) -> None:
        self._desk = desk
        self._parameters = parameters
        self._owner = owner
        self._peer_key = peer_key
        self._announcement = announcement
        self._scores = scores
        self._hidden: _Hidden | None = None

    @property
    def uid(self) -> Uid | None:
        """The row of this account, None without one."""
        return self._desk.state.uid_of_owner.get(self._owner)

    async def run(self) -> None:
        """Act once per epoch until cancelled."""
        acted: Epoch | None = None
        while True:
            epoch = self._desk.state.epoch
            if self.uid is None:
                await self._subscribe()
            elif acted != epoch:
                acted = epoch
                await self._act(self._desk.state, self.uid)
            await self._desk.wait_for_block()

    async def _act(self, state: State, uid: Uid) -> None:
        for content in self._wishes(state, uid):
            try:
                await self._desk.submit(content)
            except TransactionRefused as error:
                logger.info("%s not sent: %s", type(content).__name__, error)

    def _wishes(self, state: State, uid: Uid) -> list[Content]:
        wishes: list[Content] = []
        if state.bonds[uid].jailed:
            wishes.append(Unjail())
        known = state.announcements[uid]
        ours = self._announcement
        if (known.modality, known.dim, known.vocabulary) != (
            ours.modality,
            ours.dim,
            ours.vocabulary,
        ):
            wishes.append(Announce(announcement=ours))
        row = measured_row(state, uid, self._scores(), self._parameters)
        if not self._parameters.commit_reveal:
            return wishes if row is None else [*wishes, SetWeights(row=row)]
        return [*wishes, *self._hide_and_show(state, uid, row)]

    def _hide_and_show(self, state: State, uid: Uid, row: Row | None) -> list[Content]:
        wishes: list[Content] = []
        hidden, self._hidden = self._hidden, None
        if hidden is not None and hidden.epoch + 1 == state.epoch:
            wishes.append(RevealWeights(salt=hidden.salt, row=hidden.row))
        if row is None:
            return wishes
        salt = secrets.token_bytes(SALT_BYTES)
        commitment = commitment_of(
            chain_id=state.chain_id,
            peer_key=self._peer_key,
            registered=state.accounts[uid].registered,
            epoch=state.epoch,
            salt=salt,
            row=row,
        )
        self._hidden = _Hidden(epoch=state.epoch, salt=salt, row=row)
        return [*wishes, CommitWeights(commitment=commitment)]

    async def _subscribe(self) -> None:
        """Work on one recent ancestor until found, entered by somebody, or too old."""
        state = self._desk.state
        depth = ANCESTOR_MARGIN
        if len(state.ancestors) < depth:
            return
        height, ancestor = state.ancestors[-depth]
        work, start = None, 0
        while work is None:
            current = self._desk.state
            if self.uid is not None or current.height - height > AGE_MAX:
                return
            search = partial(
                find_work,
                state.chain_id,
                self._owner,
                self._peer_key,
                ancestor,
                current.work_target,
                start=start,
                tries=WORK_TRIES,
            )
            work = await trio.to_thread.run_sync(search)
            start += WORK_TRIES
        content = Subscribe(
            peer_key=self._peer_key, ancestor=height, work=work, announcement=self._announcement
        )
        try:
            await self._desk.submit(content)
        except TransactionRefused as error:
            logger.info("subscription not sent: %s", error)
            return
        for _ in range(AGE_MAX):
            if self.uid is not None:
                return
            await self._desk.wait_for_block()


def measured_row(
    state: State, uid: Uid, scores: Mapping[PeerId, float], parameters: Parameters
) -> Row | None:
    """The row for measured scores: 1/16 on oneself, the rest shared; None without any score.

    Peers without an account, or with another peer key by now, are left out.
    """
    known = {
        other: int(score * SCORE_ONE)
        for peer, score in sorted(scores.items())
        if (other := state.uid_of_peer(PeerKey(peer.public_key))) is not None and other != uid
    }
    total = sum(known.values())
    if total <= 0:
        return None
    own = min(WEIGHT_ONE // SELF_WEIGHT_DIVISOR, parameters.self_weight_max)
    weighted = {other: score * (WEIGHT_ONE - own) for other, score in known.items()}
    return rounded_row({**weighted, uid: total * own})
