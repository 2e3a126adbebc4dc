"""Errors of the ledger and of block ordering, split by whose fault they are.

    ConsensusError
    ├── Refused                 theirs: expected, cheap, becomes a verdict
    │   ├── DecodeError         bytes are not the canonical encoding of a value
    │   ├── InvalidTransaction  .reason: TransactionFault
    │   └── InvalidBlock        .reason: BlockFault
    ├── GenesisError            ours: a genesis that a person wrote or a stranger served is wrong
    │   └── ParameterError      one parameter is outside its hard range
    └── InvariantViolation      impossible: the node must end, state can no longer be trusted

Reasons are stable: their texts appear in vectors, interfaces and logs, and are never reused.
"""

from __future__ import annotations

from enum import StrEnum


class TransactionFault(StrEnum):
    """Why a well-encoded transaction may not enter a block at this point of the chain."""

    WRONG_CHAIN = "wrong-chain"
    BAD_SIGNATURE = "bad-signature"
    BAD_PROOF_OF_KEY = "bad-proof-of-key"
    UNKNOWN_ACCOUNT = "unknown-account"
    NONCE_USED = "nonce-used"
    NONCE_GAP = "nonce-gap"
    EXPIRED = "expired"
    EXPIRY_TOO_FAR = "expiry-too-far"
    FEE_OUT_OF_RANGE = "fee-out-of-range"
    FEE_NOT_COVERED = "fee-not-covered"
    AMOUNT_ZERO = "amount-zero"
    STAKE_TOO_SMALL = "stake-too-small"
    STAKE_LOCKED = "stake-locked"
    RECIPIENT_SELF = "recipient-self"
    RECIPIENT_UNKNOWN = "recipient-unknown"
    WEIGHT_TO_UNKNOWN = "weight-to-unknown"
    SELF_WEIGHT_TOO_LARGE = "self-weight-too-large"
    WEIGHTS_MUST_BE_COMMITTED = "weights-must-be-committed"
    COMMITS_NOT_IN_USE = "commits-not-in-use"
    COMMIT_ALREADY_OPEN = "commit-already-open"
    COMMIT_MISSING = "commit-missing"
    COMMIT_MISMATCH = "commit-mismatch"
    REVEAL_OUT_OF_TIME = "reveal-out-of-time"
    ACCOUNT_EXISTS = "account-exists"
    PEER_KEY_TAKEN = "peer-key-taken"
    PEER_KEY_UNCHANGED = "peer-key-unchanged"
    WORK_ANCESTOR_UNKNOWN = "work-ancestor-unknown"
    WORK_TOO_LITTLE = "work-too-little"
    WORK_REUSED = "work-reused"
    SUBSCRIPTIONS_FULL = "subscriptions-full"
    TABLE_FULL = "table-full"
    BOND_TOO_SMALL = "bond-too-small"
    BOND_NOT_RAISED = "bond-not-raised"
    NOT_VALIDATING = "not-validating"
    ALREADY_LEAVING = "already-leaving"
    NOT_JAILED = "not-jailed"
    JAILED = "jailed"
    TOMBSTONED = "tombstoned"


class BlockFault(StrEnum):
    """Why a well-encoded block is invalid by full execution."""

    WRONG_VERSION = "wrong-version"
    WRONG_CHAIN = "wrong-chain"
    WRONG_EPOCH = "wrong-epoch"
    WRONG_HEIGHT = "wrong-height"
    TIME_NOT_INCREASING = "time-not-increasing"
    TOO_LARGE = "too-large"
    STATE_ROOT = "state-root"
    RECEIPTS_ROOT = "receipts-root"
    VOTER_SET = "voter-set"
    NEXT_VOTER_SET = "next-voter-set"
    CLOSING_NOT_EMPTY = "closing-not-empty"
    CLOSING_TOO_EARLY = "closing-too-early"
    TRANSACTION = "transaction"
    TOO_MUCH_EVIDENCE = "too-much-evidence"
    EVIDENCE_INVALID = "evidence-invalid"
    EVIDENCE_REPEATED = "evidence-repeated"
    EVIDENCE_OUT_OF_WINDOW = "evidence-out-of-window"
    ATTEST_INVALID = "attest-invalid"
    ATTEST_OUT_OF_WINDOW = "attest-out-of-window"


class ConsensusError(Exception):
    """Root of everything this package raises on purpose."""


class Refused(ConsensusError):
    """Somebody else's value cannot be accepted; nothing here has changed because of it."""


class DecodeError(Refused):
    """Bytes are not the one canonical encoding of the expected value."""


class InvalidTransaction(Refused):
    """A transaction may not be executed here; `reason` is stable, `detail` is for people."""

    def __init__(self, reason: TransactionFault, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else str(reason))
        self.reason = reason
        self.detail = detail


class InvalidBlock(Refused):
    """A block may not extend this state; for TRANSACTION the cause is the InvalidTransaction."""

    def __init__(self, reason: BlockFault, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else str(reason))
        self.reason = reason
        self.detail = detail


class GenesisError(ConsensusError):
    """A genesis cannot start a chain; the text says which field and why."""


class ParameterError(GenesisError):
    """A parameter is outside its hard range."""


class InvariantViolation(ConsensusError):
    """Something impossible happened: memory, disk or this program is wrong. Never caught inside."""
