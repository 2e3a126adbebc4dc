"""The states a node holds: that of the last final block, and one for each block above it.

Rule: a state is kept under the hash of the block that made it, and only after full execution; a
block that becomes final moves `final` on, everything else is forgotten. Execution runs in worker
threads; states are sealed values, so readers on the trio thread never see half of one.
"""

from collections.abc import Sequence
from typing import Final

from consensus.block import Block
from consensus.crypto import Verifier
from consensus.engine_port import Build, BuildFailed, Built, Invalid, Outcome, Valid
from consensus.errors import InvalidBlock, InvalidTransaction, InvariantViolation
from consensus.execution import apply_transaction, check_signatures
from consensus.params import Parameters
from consensus.state import State
from consensus.transaction import Role, Subscribe, Transaction
from consensus.transition import propose, state_transition
from consensus.types import ZERO_DIGEST, AccountId, Digest, Height

OFFERED_MAX: Final = 1_024
"""Transactions offered to one block: about 250 ms of execution on a slow core."""


class Ledger:
    """States by block hash. `execute` and `build` may run in a thread, one call at a time."""

    def __init__(
        self, parameters: Parameters, verifier: Verifier, *, final: State, final_hash: Digest
    ) -> None:
        self.parameters = parameters
        self._verifier = verifier
        self._states = {final_hash: final}
        self.final = final
        self.final_hash = final_hash

    def state_after(self, block_hash: Digest) -> State | None:
        """The state after a block that is final or above it."""
        return self._states.get(block_hash)

    def execute(self, block: Block) -> Outcome:
        """Execute on the parent's state with all checks, and keep the result."""
        parent = self._states.get(block.header.parent_hash)
        if parent is None:
            raise InvariantViolation("execution without the parent's state")
        try:
            state = state_transition(parent, block, self.parameters, verifier=self._verifier)
        except InvalidBlock as error:
            return Invalid(fault=str(error))
        self._states[block.hash] = state
        return _valid(block, state)

    def build(self, effect: Build, offered: Sequence[bytes]) -> Built | BuildFailed:
        """Fill the template with what fits and holds of `offered`, and keep the state."""
        template = effect.template
        parent = self._states.get(template.parent_hash)
        if parent is None:
            return BuildFailed(view=template.view)
        try:
            block, state = propose(
                parent,
                template,
                offered,
                effect.evidence,
                effect.attest,
                self.parameters,
                verifier=self._verifier,
            )
        except InvalidBlock:
            return BuildFailed(view=template.view)
        self._states[block.hash] = state
        return Built(block=block, next_voters=_valid(block, state).next_voters)

    def finalize(self, block_hash: Digest) -> dict[bytes, bytes | None]:
        """Make a block's state the final one; return what storage has to change."""
        state = self._states[block_hash]
        del self._states[self.final_hash]
        self.final, self.final_hash = state, block_hash
        return state.delta

    def discard(self, block_hashes: Sequence[Digest]) -> None:
        """Forget states of blocks that will never be final."""
        for block_hash in block_hashes:
            if block_hash != self.final_hash:
                self._states.pop(block_hash, None)

    def view(self, state: State | None = None) -> "LedgerView":
        """What the mempool asks, of the final state or another."""
        return LedgerView(state or self.final, self.parameters, self._verifier)


class LedgerView:
    """One state as the mempool sees it."""

    def __init__(self, state: State, parameters: Parameters, verifier: Verifier) -> None:
        self._state = state
        self._parameters = parameters
        self._verifier = verifier

    @property
    def height(self) -> int:
        """Height of the state's block."""
        return self._state.height

    def next_nonce(self, account: AccountId, role: Role) -> int:
        """The nonce that the key's next transaction must carry; 0 for an unknown account."""
        state = self._state
        uid = state.uid_of_owner.get(account)
        if uid is not None:
            return (state.peer_nonce if role is Role.PEER else state.owner_nonce)[uid]
        former = state.departed_uid.get(account)
        if former is None or role is Role.PEER:
            return 0
        return state.departed[former].owner_nonce

    def refusal(self, transaction: Transaction) -> str | None:
        """Why it cannot be executed, apart from the order of nonces."""
        state = self._state
        if transaction.chain_id != state.chain_id:
            return "of another chain"
        known = transaction.account in state.uid_of_owner
        if not known and not isinstance(transaction.content, Subscribe):
            return "unknown account"
        try:
            if transaction.nonce == self.next_nonce(transaction.account, transaction.role):
                draft = state.draft()
                draft.height = Height(state.height + 1)
                apply_transaction(draft, transaction, self._parameters, self._verifier)
            else:
                check_signatures(state, transaction, self._verifier)
        except InvalidTransaction as error:
            return str(error)
        return None


def _valid(block: Block, state: State) -> Valid:
    at_boundary = block.header.next_vset_hash != ZERO_DIGEST
    return Valid(next_voters=state.voters if at_boundary else None)
