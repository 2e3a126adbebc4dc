"""The ledger and block ordering of Agora: pure and deterministic, without I/O, clock or chance.

    state = genesis_state(genesis)
    state = state_transition(state, block, parameters)      # raises InvalidBlock(reason)
    for effect in engine.handle(event, now_ms): ...

`incentive` is the paper's mechanism, `settlement` its emission, `transition` one block, `engine`
the agreement on which block. Everything else is a value, an encoding or a rule that these use.
"""

from consensus.engine import Engine
from consensus.errors import (
    BlockFault,
    ConsensusError,
    DecodeError,
    GenesisError,
    InvalidBlock,
    InvalidTransaction,
    InvariantViolation,
    ParameterError,
    TransactionFault,
)
from consensus.genesis import Genesis, GenesisAccount, genesis_state
from consensus.genesis_text import genesis_from_json, genesis_to_json
from consensus.incentive import Outcome, Snapshot, mechanism_step, payouts
from consensus.params import Parameters
from consensus.state import State
from consensus.transaction import Transaction, decode_transaction
from consensus.transition import state_transition
from consensus.weights import Row, rounded_row

__all__ = [
    "BlockFault",
    "ConsensusError",
    "DecodeError",
    "Engine",
    "Genesis",
    "GenesisAccount",
    "GenesisError",
    "InvalidBlock",
    "InvalidTransaction",
    "InvariantViolation",
    "Outcome",
    "ParameterError",
    "Parameters",
    "Row",
    "Snapshot",
    "State",
    "Transaction",
    "TransactionFault",
    "decode_transaction",
    "genesis_from_json",
    "genesis_state",
    "genesis_to_json",
    "mechanism_step",
    "payouts",
    "rounded_row",
    "state_transition",
]
