"""Parameters of a chain, each with its hard range, and the presets PAPER, TESTNET and LOCAL.

Parameters are part of the genesis and so of the chain id; nothing changes them afterwards. The
hard ranges are the ones inside which every bound of the fixed-point arithmetic was proved: a
genesis served by a stranger is refused when one field leaves its range (ledger.md, Presets).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Final

from consensus.codec import Reader, Writer
from consensus.errors import DecodeError, ParameterError
from consensus.types import TOKEN

WEIGHT_ONE: Final = 2**16
"""A whole row: weights are Q16."""
SCALING_ONE: Final = 2**30
"""Scaling a of an unscaled peer: Q30."""
SUPPLY_LIMIT: Final = 2**55
"""No amount reaches this: products of two amounts' shares stay in the proved bounds."""
ACCOUNTS_LIMIT: Final = 4096
"""Beyond it the mechanism no longer fits into an epoch on the reference machine."""
DAY_S: Final = 24 * 60 * 60

HARD_RANGES: Final[dict[str, tuple[int, int]]] = {
    "temperature": (0, 16),  # larger and |t| leaves the sigmoid's table
    "depth": (0, 64),  # c <= (d + 1) * 2^36 stays far below 2^53; time grows with it
    "cutoff": (0, 2**43),  # more than any visits: nobody is connected to anybody
    "rank_cutoff": (0, 2**20),  # times a received rank of 2^36 stays below 2^63
    "self_weight_max": (1, WEIGHT_ONE),
    "recovery": (0, SCALING_ONE),
    "learning_rate": (0, 2**30),
    "inflation": (0, 2**32),
    "fee": (0, 1_000 * TOKEN),
    "subscription_price": (0, 1_000_000 * TOKEN),
    "supply_cap": (1, SUPPLY_LIMIT - 1),
    "accounts_max": (1, ACCOUNTS_LIMIT),
    "blocks_per_epoch": (1, 100_000),
    "block_interval_ms": (50, 600_000),
    "view_timeout_ms": (100, 600_000),
    "work_target": (2**160, 2**256 - 1),
    "bond_min": (0, 21_000_000 * TOKEN),
    "bond_window_epochs": (1, 1_000_000),
    "slash": (0, WEIGHT_ONE),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """Everything a chain's rules depend on. Raises ParameterError outside the hard ranges."""

    temperature: int
    """Of the trust sigmoid (eq. 4, Figure 6); a plain integer."""
    depth: int
    """Steps d of the walk that measures connectivity."""
    cutoff: int
    """kappa, Q36: expected visits a walk must exceed to count as a connection."""
    rank_cutoff: int
    """rho, Q16: the part of a peer's received rank that a walk must exceed as well."""
    self_edge_to_pool: bool
    """Whether the self edge earns nothing: its emission and rank go to the pool."""
    self_weight_max: int
    """Q16: largest self weight in a submitted row."""
    recovery: int
    """Q30: what every scaling factor regains per open epoch."""
    learning_rate: int
    """Q16: descent step on the scaling factors per closed epoch."""
    commit_reveal: bool
    """Whether weights are committed one epoch before they are shown."""
    inflation: int
    """tau, Q32: emission per base unit of scaled stake, block and open network."""
    fee: int
    """Base units: smallest fee of a transaction; FEE_RATIO_MAX times it is the largest."""
    subscription_price: int
    """Base units that SubscribeFor pays into the pool."""
    supply_cap: int
    """Base units that can ever be issued."""
    accounts_max: int
    """Rows of the table; beyond, an idle account makes room or the newcomer is refused."""
    blocks_per_epoch: int
    """E: how often the mechanism is applied and the voter set changes."""
    block_interval_ms: int
    """What a leader paces its proposals to; no rule depends on it."""
    view_timeout_ms: int
    """T0: first timeout of a view; no rule depends on it."""
    work_target: int
    """u256: first target of a subscription's proof of work, and the easiest one ever."""
    bond_min: int
    """Base units a voter must lock."""
    bond_window_epochs: int
    """Epochs after its last set in which a voter's bond stays locked and evidence counts."""
    slash: int
    """Q16: part of the bond that an equivocation costs."""

    def __post_init__(self) -> None:
        for name, (low, high) in HARD_RANGES.items():
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise ParameterError(f"parameter {name} is {value!r}, allowed {low} to {high}")
        for name in ("self_edge_to_pool", "commit_reveal"):
            if type(getattr(self, name)) is not bool:
                raise ParameterError(f"parameter {name} must be true or false")


FEE_RATIO_MAX: Final = 1_000
"""Largest fee as a multiple of the smallest: what a stolen peer key can burn per transaction."""

PAPER: Final = Parameters(
    temperature=10,
    depth=4,
    cutoff=0,
    rank_cutoff=0,
    self_edge_to_pool=False,
    self_weight_max=WEIGHT_ONE,
    recovery=0,
    learning_rate=3_277,  # .05
    commit_reveal=False,
    inflation=42_949_673,  # .01 per block = per epoch
    fee=0,
    subscription_price=0,
    supply_cap=SUPPLY_LIMIT - 1,
    accounts_max=ACCOUNTS_LIMIT,
    blocks_per_epoch=1,
    block_interval_ms=1_000,
    view_timeout_ms=4_000,
    work_target=2**240,
    bond_min=0,
    bond_window_epochs=1,
    slash=0,
)
"""The paper taken literally where it can be; for experiments, not for a network with strangers."""

TESTNET: Final = Parameters(
    temperature=10,
    depth=4,
    cutoff=0,
    rank_cutoff=4_096,  # 1/16
    self_edge_to_pool=True,
    self_weight_max=WEIGHT_ONE // 2,
    recovery=10_737_418,  # 1 %
    learning_rate=32_768,  # 1/2
    commit_reveal=True,
    inflation=4_295,  # about 10^-6
    fee=10**6,
    subscription_price=TOKEN,
    supply_cap=21_000_000 * TOKEN,
    accounts_max=ACCOUNTS_LIMIT,
    blocks_per_epoch=120,
    block_interval_ms=1_000,
    view_timeout_ms=4_000,
    work_target=2**234,
    bond_min=TOKEN,
    bond_window_epochs=14 * DAY_S // 120,
    slash=656,  # 1 %
)
"""For a public network."""

LOCAL: Final = dataclasses.replace(
    TESTNET,
    commit_reveal=False,
    inflation=8_589_935,  # .01 per epoch of five blocks
    blocks_per_epoch=5,
    block_interval_ms=500,
    view_timeout_ms=1_000,
    work_target=2**240,
    bond_window_epochs=8,
)
"""For a network on one machine."""

PRESETS: Final[dict[str, Parameters]] = {"paper": PAPER, "testnet": TESTNET, "local": LOCAL}

_FIELDS: Final = tuple(field.name for field in dataclasses.fields(Parameters))
_FLAGS: Final = frozenset({"self_edge_to_pool", "commit_reveal"})


def encode_parameters(parameters: Parameters) -> bytes:
    """All fields in the order of the class: flags as one byte, the target as u256, others u64."""
    writer = Writer()
    for name in _FIELDS:
        value = getattr(parameters, name)
        if name in _FLAGS:
            writer.flag(value)
        elif name == "work_target":
            writer.u256(value)
        else:
            writer.u64(value)
    return writer.done()


def read_parameters(reader: Reader) -> Parameters:
    """The inverse of `encode_parameters`. Raises DecodeError, also outside the hard ranges."""
    values: dict[str, int | bool] = {}
    for name in _FIELDS:
        if name in _FLAGS:
            values[name] = reader.flag()
        elif name == "work_target":
            values[name] = reader.u256()
        else:
            values[name] = reader.u64()
    try:
        return Parameters(**values)  # type: ignore[arg-type]
    except ParameterError as error:
        raise DecodeError(str(error)) from None
