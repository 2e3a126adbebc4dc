"""What is legal in which state of an exchange: one table, total over states and inputs.

Rule: for every role, state and input the table holds the next state or whose fault the input is. An
input is LOCAL when this side gives it (SEND, ADMIT, CANCEL) and REMOTE when the peer's bytes do.
"""

from collections.abc import Mapping
from enum import Enum, auto, unique
from itertools import product
from types import MappingProxyType
from typing import Final


@unique
class Role(Enum):
    """Which end of the stream."""

    __hash__ = object.__hash__  # members are singletons; Enum's own hashes their names, in Python

    CLIENT = auto()
    SERVER = auto()


@unique
class State(Enum):
    """Where an exchange stands; the suffix says which kind of request it is about."""

    __hash__ = object.__hash__

    IDLE = auto()
    AWAITING_RESULT = auto()
    AWAITING_GRADIENT = auto()
    RECEIVING_ANSWER = auto()
    ADMITTING_FORWARD = auto()
    ADMITTING_BACKWARD = auto()
    RECEIVING_FORWARD = auto()
    RECEIVING_BACKWARD = auto()
    SERVING_FORWARD = auto()
    SERVING_BACKWARD = auto()
    DONE = auto()
    FAULTED = auto()
    CANCELLED = auto()


@unique
class Input(Enum):
    """What can happen to an exchange: SEND and ADMIT by this side, the others by the peer."""

    __hash__ = object.__hash__

    SEND_FORWARD = auto()
    SEND_BACKWARD = auto()
    SEND_RESULT = auto()
    SEND_GRADIENT = auto()
    SEND_FAILURE = auto()
    ADMIT = auto()
    CANCEL = auto()
    HEAD_FORWARD = auto()
    HEAD_BACKWARD = auto()
    HEAD_RESULT = auto()
    HEAD_GRADIENT = auto()
    HEAD_FAILURE = auto()
    PAYLOAD = auto()  # the last byte of it has arrived
    BYTES = auto()  # any, beyond what the frame announced
    INVALID = auto()  # bytes against the protocol
    END = auto()  # the peer will send no more


@unique
class Blame(Enum):
    """Whose fault an illegal pair is."""

    LOCAL = auto()
    REMOTE = auto()


LOCAL_INPUTS = frozenset(
    {
        Input.SEND_FORWARD,
        Input.SEND_BACKWARD,
        Input.SEND_RESULT,
        Input.SEND_GRADIENT,
        Input.SEND_FAILURE,
        Input.ADMIT,
        Input.CANCEL,
    }
)

_CLIENT: Mapping[tuple[State, Input], State] = {
    (State.IDLE, Input.SEND_FORWARD): State.AWAITING_RESULT,
    (State.IDLE, Input.SEND_BACKWARD): State.AWAITING_GRADIENT,
    (State.AWAITING_RESULT, Input.HEAD_RESULT): State.RECEIVING_ANSWER,
    (State.AWAITING_GRADIENT, Input.HEAD_GRADIENT): State.RECEIVING_ANSWER,
    (State.AWAITING_RESULT, Input.HEAD_FAILURE): State.DONE,
    (State.AWAITING_GRADIENT, Input.HEAD_FAILURE): State.DONE,
    (State.RECEIVING_ANSWER, Input.PAYLOAD): State.DONE,
    (State.DONE, Input.END): State.DONE,
    **{(state, Input.CANCEL): State.CANCELLED for state in State},
}

_SERVER: Mapping[tuple[State, Input], State] = {
    (State.IDLE, Input.HEAD_FORWARD): State.ADMITTING_FORWARD,
    (State.IDLE, Input.HEAD_BACKWARD): State.ADMITTING_BACKWARD,
    (State.ADMITTING_FORWARD, Input.ADMIT): State.RECEIVING_FORWARD,
    (State.ADMITTING_BACKWARD, Input.ADMIT): State.RECEIVING_BACKWARD,
    (State.RECEIVING_FORWARD, Input.PAYLOAD): State.SERVING_FORWARD,
    (State.RECEIVING_BACKWARD, Input.PAYLOAD): State.SERVING_BACKWARD,
    (State.SERVING_FORWARD, Input.END): State.SERVING_FORWARD,  # the client's half-close
    (State.SERVING_BACKWARD, Input.END): State.SERVING_BACKWARD,
    (State.SERVING_FORWARD, Input.SEND_RESULT): State.DONE,
    (State.SERVING_BACKWARD, Input.SEND_GRADIENT): State.DONE,
    (State.IDLE, Input.SEND_FAILURE): State.DONE,  # e.g. DEADLINE for a header that never came
    (State.ADMITTING_FORWARD, Input.SEND_FAILURE): State.DONE,
    (State.ADMITTING_BACKWARD, Input.SEND_FAILURE): State.DONE,
    (State.RECEIVING_FORWARD, Input.SEND_FAILURE): State.DONE,
    (State.RECEIVING_BACKWARD, Input.SEND_FAILURE): State.DONE,
    (State.SERVING_FORWARD, Input.SEND_FAILURE): State.DONE,
    (State.SERVING_BACKWARD, Input.SEND_FAILURE): State.DONE,
    (State.FAULTED, Input.SEND_FAILURE): State.DONE,
    (State.DONE, Input.END): State.DONE,
    **{(state, Input.CANCEL): State.CANCELLED for state in State},
}


def _total(
    legal: Mapping[tuple[State, Input], State],
) -> Mapping[tuple[State, Input], State | Blame]:
    return MappingProxyType(
        {
            (state, given): legal.get(
                (state, given), Blame.LOCAL if given in LOCAL_INPUTS else Blame.REMOTE
            )
            for state, given in product(State, Input)
        }
    )


TRANSITIONS: Final = MappingProxyType({Role.CLIENT: _total(_CLIENT), Role.SERVER: _total(_SERVER)})
