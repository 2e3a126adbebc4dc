"""Receipts: what they bind, and that nothing of it can be changed."""

from dataclasses import replace

import nacl.exceptions
import nacl.signing
import numpy as np
import pytest

from tensorwire import (
    DType,
    Kind,
    Modality,
    Part,
    Receipt,
    WireTensor,
    exchange_digest,
    receipt_message,
    verify_receipt,
)
from tests.tensorwire.strategies import array

KEY = nacl.signing.SigningKey(bytes(range(32)))
ID = bytes(range(16))
UNSIGNED = Receipt(
    server=b"server",
    client=b"client",
    request_digest=bytes(32),
    result_digest=bytes([1]) * 32,
    service_number=7,
    queue_wait_us=1_500,
    share_ppm=250_000,
    weights_height=12,
)


def signed() -> Receipt:
    message = receipt_message(UNSIGNED, context=b"chain", request_id=ID)
    return replace(UNSIGNED, signature=KEY.sign(message).signature)


def verify(server: bytes, message: bytes, signature: bytes) -> bool:
    assert isinstance(server, bytes)
    try:
        KEY.verify_key.verify(message, signature)
    except nacl.exceptions.BadSignatureError:
        return False
    return True


def test_a_signed_receipt_holds() -> None:
    assert verify_receipt(signed(), verify, context=b"chain", request_id=ID)


@pytest.mark.parametrize(
    "change",
    [
        {"server": b"serve"},
        {"client": b"clientt"},
        {"request_digest": bytes([2]) * 32},
        {"result_digest": bytes(32)},
        {"service_number": 8},
        {"queue_wait_us": 1_501},
        {"share_ppm": 250_001},
        {"weights_height": 13},
    ],
)
def test_nothing_in_it_can_be_changed(change: dict[str, object]) -> None:
    changed = replace(signed(), **change)  # type: ignore[arg-type]
    assert not verify_receipt(changed, verify, context=b"chain", request_id=ID)


def test_it_holds_on_one_chain_and_for_one_request() -> None:
    assert not verify_receipt(signed(), verify, context=b"other", request_id=ID)
    assert not verify_receipt(signed(), verify, context=b"chain", request_id=bytes(16))


def test_moving_bytes_between_names_changes_the_message() -> None:
    moved = replace(UNSIGNED, server=b"serverc", client=b"lient")
    same = (context, ID) if (context := b"chain") else None
    assert same is not None
    assert receipt_message(moved, context=context, request_id=ID) != receipt_message(
        UNSIGNED, context=context, request_id=ID
    )


def test_a_digest_is_of_kind_id_layout_and_bytes() -> None:
    values = array((2, 2, 4), 1)
    part = Part(Modality.TENSOR, WireTensor.from_numpy(values))
    digest = exchange_digest(Kind.FORWARD, ID, [part])
    data = part.tensor.data
    others = [
        exchange_digest(Kind.BACKWARD, ID, [part]),
        exchange_digest(Kind.FORWARD, bytes(16), [part]),
        exchange_digest(Kind.FORWARD, ID, [part, part]),
        exchange_digest(Kind.FORWARD, ID, [Part(Modality.IMAGE, part.tensor)]),
        exchange_digest(
            Kind.FORWARD, ID, [Part(Modality.TENSOR, WireTensor(DType.FLOAT32, (4, 1, 4), data))]
        ),
        exchange_digest(
            Kind.FORWARD, ID, [Part(Modality.TENSOR, WireTensor(DType.BFLOAT16, (2, 2, 8), data))]
        ),
        exchange_digest(
            Kind.FORWARD, ID, [Part(Modality.TENSOR, WireTensor.from_numpy(np.negative(values)))]
        ),
    ]
    assert len({digest, *others}) == 1 + len(others)
