"""The node's errors, by whose fault they are; the command line maps each to one line and a code.

NodeError                    ends a command: one clear line on standard error, exit code 1
├── UsageError               the command line, environment or configuration; exit code 2
│   ├── ConfigError          unknown key, wrong type, value out of range
│   └── AddressError         not a multiaddr this node can listen on or dial
├── KeystoreError            the identity on disk
│   ├── KeyMissing           no key where one is needed
│   ├── KeyExists            a key is there already and is never overwritten
│   ├── KeyCorrupt           the file is not a key file; it is left as it is
│   ├── KeyLocked            another process runs this key
│   └── PassphraseError      missing or wrong passphrase
├── StoreError               the databases
│   ├── StoreCorrupt         damaged or not ours; nothing was written
│   ├── StoreFull            no space; the transaction was rolled back
│   ├── StoreReadOnly        the directory or file cannot be written
│   ├── StoreMismatch        another chain's database, or another version's
│   ├── StoreLocked          another process holds the database
│   └── VoteLogLost          the chain is there and the vote log is not: refuse to vote
├── GenesisError             a genesis file that cannot be read, checked or matched
├── DataError                the training data is missing, empty or unreadable
├── NeuronMissing            a training verb without the extra `agora-node[neuron]`
├── ListenError              the port is in use or the address is not ours
├── JoinError                no bootstrap peer answered, or none with this network
│   ├── ChainMismatch        the peer runs another chain
│   └── VersionMismatch      the peer speaks another protocol version
├── ApiError                 the running node's local interface
│   ├── NodeNotRunning       nothing answers at the address in the data directory
│   └── ApiRefused           the node answered and said no, with its reason
├── TransactionRefused   the ledger or the mempool does not take an own transaction now
├── TestnetError             the local network of processes did not reach its goal in time
└── CallError                a request to a peer; typed and expected, never ends the node
    ├── Overloaded           the peer's queue refused: busy, with the wait it suggests
    ├── RemoteError          the peer answered with an error frame
    ├── CallTimeout          no answer within the deadline
    └── PeerUnreachable      no connection, or it broke under the call

DoubleSignRefused            the independent signer guard: the engine asked for a signature
                             that would break rule 1 or 2; ends the node, never caught
InvariantViolation           impossible by construction; ends the node
"""

from __future__ import annotations

from typing import ClassVar


class NodeError(Exception):
    """Ends a command: `str(error)` is one line for a person, `exit_code` the process's."""

    exit_code: ClassVar[int] = 1


class UsageError(NodeError):
    """The command line, environment or configuration file."""

    exit_code: ClassVar[int] = 2


class ConfigError(UsageError):
    """An unknown key, a wrong type or a value out of range."""


class AddressError(UsageError):
    """Not a multiaddr this node can listen on or dial."""


class KeystoreError(NodeError):
    """The identity on disk."""


class KeyMissing(KeystoreError):
    """No key where one is needed."""


class KeyExists(KeystoreError):
    """A key is there already; it is never overwritten."""


class KeyCorrupt(KeystoreError):
    """The file is not a key file; it is left as it is."""


class KeyLocked(KeystoreError):
    """Another process runs this key."""


class PassphraseError(KeystoreError):
    """The passphrase is missing or wrong."""


class StoreError(NodeError):
    """The databases."""


class StoreCorrupt(StoreError):
    """Damaged or not ours; nothing was written."""


class StoreFull(StoreError):
    """No space is left; the transaction was rolled back."""


class StoreReadOnly(StoreError):
    """The directory or file cannot be written."""


class StoreMismatch(StoreError):
    """Another chain's database, or another version's."""


class StoreLocked(StoreError):
    """Another process holds the database."""


class VoteLogLost(StoreError):
    """The chain is there and the vote log is not: voting now could contradict a lost vote."""


class GenesisError(NodeError):
    """A genesis that cannot be read, checked or matched."""


class DataError(NodeError):
    """The training data is missing, empty or unreadable."""


class NeuronMissing(NodeError):
    """A training verb without the extra `agora-node[neuron]`."""


class ListenError(NodeError):
    """The port is in use or the address is not this machine's."""


class JoinError(NodeError):
    """No bootstrap peer answered, or none with the wanted network."""


class ChainMismatch(JoinError):
    """The peer runs another chain."""


class VersionMismatch(JoinError):
    """The peer speaks another protocol version."""


class ApiError(NodeError):
    """The running node's local interface."""


class NodeNotRunning(ApiError):
    """Nothing answers at the address in the data directory."""


class ApiRefused(ApiError):
    """The node answered and said no; `str()` carries its reason."""


class TransactionRefused(NodeError):
    """An own transaction is not taken; `str()` carries the reason."""


class TestnetError(NodeError):
    """The local network of processes did not reach its goal in time."""

    __test__: ClassVar[bool] = False  # pytest collects classes named Test*


class CallError(NodeError):
    """A request to a peer failed in an expected way."""


class Overloaded(CallError):
    """The peer's queue refused the request; try again after `retry_after_s`."""

    def __init__(self, message: str, *, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RemoteError(CallError):
    """The peer answered with an error frame; `code` is the frame's, empty when unknown."""

    def __init__(self, message: str, *, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class CallTimeout(CallError):
    """No answer within the deadline."""


class PeerUnreachable(CallError):
    """No connection to the peer, or it broke under the call."""


class DoubleSignRefused(Exception):
    """The signer guard refused: the signature would break rule 1 or 2 of the ordering."""


class InvariantViolation(Exception):
    """Impossible by construction: a defect here, ends the node."""
