"""Vectors of the tensor protocol: `python -m interop.tensor` writes them, `--check` compares.

The rule: `vectors/tensor.json` holds whole frames with the answers of the model in
`node.test_model`, digests and a receipt's message, and frames that must be refused with their
codes. Protobuf encodings are not unique: a frame here is one that must be understood, not the only
one that may be sent.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from node.test_model import VOCABULARY, TestModel
from tensorwire import (
    Backward,
    ClientExchange,
    DType,
    Forward,
    Kind,
    Modality,
    Part,
    Receipt,
    RemoteProtocolError,
    RequestHead,
    Result,
    ServerExchange,
    WireTensor,
    exchange_digest,
    receipt_message,
    wire_pb2,
)
from tensorwire.framing import MAGIC

PATH: Final = Path(__file__).parent / "vectors" / "tensor.json"
REQUEST_ID: Final = bytes(range(16))
REMAINING_MS: Final = 10_000
CONTEXT: Final = b"agora vectors"


def text(*shape: int) -> Part:
    """Token ids 0, 7, 14, ... in `shape`."""
    return Part(Modality.TEXT, WireTensor.from_numpy(np.arange(np.prod(shape)).reshape(shape) * 7))


def floats(modality: Modality, dtype: DType, *shape: int) -> Part:
    """Multiples of 1/64 from -1/2 on, repeating, in `shape`: exact in every float dtype."""
    values = (np.arange(np.prod(shape)) % 65 - 32).reshape(shape) / 64
    return Part(modality, WireTensor.from_numpy(values.astype(np.float32), dtype))


LAST_TOKEN: Final = Part(
    Modality.TEXT, WireTensor.from_numpy(np.array([[0, VOCABULARY - 1], [VOCABULARY - 1, 0]]))
)

FORWARDS: Final = {
    "text": (text(2, 3),),
    "text of one token": (text(1, 1),),
    "text of 320 tokens": (text(5, 64),),
    "text of the first and the last token": (LAST_TOKEN,),
    "tensor float32": (floats(Modality.TENSOR, DType.FLOAT32, 1, 2, 5),),
    "tensor float16": (floats(Modality.TENSOR, DType.FLOAT16, 1, 2, 5),),
    "tensor bfloat16": (floats(Modality.TENSOR, DType.BFLOAT16, 1, 2, 5),),
    "tensor int8 in blocks": (floats(Modality.TENSOR, DType.INT8_BLOCK, 1, 2, 40),),
    "image": (floats(Modality.IMAGE, DType.FLOAT32, 2, 1, 3, 2, 2),),
    "speech": (floats(Modality.SPEECH, DType.FLOAT32, 1, 1, 4000),),
    "text and image": (text(1, 2), floats(Modality.IMAGE, DType.FLOAT32, 1, 1, 1, 2, 2)),
}


def framed(header: bytes, payload: bytes = b"") -> str:
    """A frame around any header, as hex."""
    return (MAGIC + b"\x01" + len(header).to_bytes(4, "little") + header + payload).hex()


def lying(**fields: Any) -> str:
    """A FORWARD frame of one TEXT part with some of its fields changed."""
    part = {"modality": 1, "dtype": 4, "shape": [1, 1], "payload_bytes": 8}
    part.update({name: fields.pop(name) for name in tuple(fields) if name in part})
    header = {"kind": 1, "request_id": REQUEST_ID, "parts": [part], **fields}
    return framed(wire_pb2.Header(**header).SerializeToString(), bytes(8))


REFUSED: Final = {
    "another protocol": b"GET / HTTP/1.1\r\n".hex(),
    "another version": "41475402",
    "a header of 16 MiB": "4147540100000001",
    "not protobuf": framed(b"\xff\xff\xff\xff"),
    "unknown kind": lying(kind=9),
    "short request id": lying(request_id=b"abc"),
    "unknown modality": lying(modality=77),
    "unknown dtype": lying(dtype=77),
    "text of floats": lying(dtype=1),
    "rank 3 text": lying(shape=[1, 1, 1]),
    "a dimension of 0": lying(shape=[0, 1]),
    "a dimension of 2^63": lying(shape=[1, 2**63]),
    "bytes that are not the shape's": lying(payload_bytes=9),
    "256 MiB": lying(modality=4, dtype=1, shape=[1024, 8, 8192], payload_bytes=1 << 28),
}


def described(part: Part) -> dict[str, Any]:
    """A part as JSON."""
    return {
        "modality": part.modality.name,
        "dtype": part.tensor.dtype.name,
        "shape": list(part.tensor.shape),
        "payload": bytes(part.tensor.data).hex(),
    }


def forward_case(name: str, parts: Sequence[Part]) -> dict[str, Any]:
    """One FORWARD, its frame and the fixed model's answer."""
    request = Forward(parts=parts, remaining_ms=REMAINING_MS)
    frame = ClientExchange(request_id=REQUEST_ID).send(request)
    server = ServerExchange()
    server.receive_data(b"".join(map(bytes, frame)))
    server.admit()
    output = WireTensor.from_numpy(TestModel().forward(parts))
    answer = server.send(Result(output=output))
    joined = [Part(Modality.TENSOR, output)]
    return {
        "name": name,
        "input": {
            "request_id": REQUEST_ID.hex(),
            "remaining_ms": REMAINING_MS,
            "parts": [described(part) for part in parts],
        },
        "output": {
            "request_frame": b"".join(map(bytes, frame)).hex(),
            "request_digest": exchange_digest(Kind.FORWARD, REQUEST_ID, parts).hex(),
            "shape": list(output.shape),
            "values": [float(value) for value in output.to_numpy().reshape(-1)],
            "result_frame": b"".join(map(bytes, answer)).hex(),
            "result_digest": exchange_digest(Kind.RESULT, REQUEST_ID, joined).hex(),
        },
    }


def backward_case() -> dict[str, Any]:
    """One BACKWARD of text and a tensor, and the input gradient of the tensor."""
    parts = (text(1, 1), floats(Modality.TENSOR, DType.FLOAT32, 1, 2, 3))
    gradient = floats(Modality.TENSOR, DType.FLOAT32, 1, 3, 16).tensor
    frame = ClientExchange(request_id=REQUEST_ID).send(
        Backward(parts=parts, gradient=gradient, remaining_ms=REMAINING_MS)
    )
    (returned,) = TestModel().backward(parts, gradient.to_numpy(), share=1.0)
    return {
        "name": "backward of text and tensor",
        "input": {
            "request_id": REQUEST_ID.hex(),
            "remaining_ms": REMAINING_MS,
            "parts": [described(part) for part in parts],
            "gradient": described(Part(Modality.TENSOR, gradient)),
        },
        "output": {
            "request_frame": b"".join(map(bytes, frame)).hex(),
            "shape": list(returned.shape),
            "values": [float(value) for value in returned.reshape(-1)],
        },
    }


def receipt_case() -> dict[str, Any]:
    """The bytes that a receipt's signature covers."""
    receipt = Receipt(
        server=b"\x01" * 38,
        client=b"\x02" * 38,
        request_digest=b"\x03" * 32,
        result_digest=b"\x04" * 32,
        service_number=5,
        queue_wait_us=6_000,
        share_ppm=700_000,
        weights_height=8,
    )
    fields = {name: getattr(receipt, name) for name in receipt.__slots__ if name != "signature"}
    return {
        "name": "receipt",
        "input": {"context": CONTEXT.hex(), "request_id": REQUEST_ID.hex()}
        | {name: each.hex() if isinstance(each, bytes) else each for name, each in fields.items()},
        "output": {
            "message": receipt_message(receipt, context=CONTEXT, request_id=REQUEST_ID).hex()
        },
    }


def refused_case(name: str, frame: str) -> dict[str, Any]:
    """A frame and the code that a server answers it with."""
    server = ServerExchange()
    try:
        events = server.receive_data(bytes.fromhex(frame))
    except RemoteProtocolError as error:
        return {"name": name, "input": {"frame": frame}, "output": {"code": error.code.name}}
    raise ValueError(f"{name} was not refused: {[type(each) for each in events] or RequestHead}")


def vectors() -> str:
    """The file, one case a line."""
    cases = [forward_case(name, parts) for name, parts in FORWARDS.items()]
    cases += [backward_case(), receipt_case()]
    cases += [refused_case(name, frame) for name, frame in REFUSED.items()]
    lines = ",\n".join(json.dumps(case) for case in cases)
    return f'{{"kind": "tensor", "cases": [\n{lines}\n]}}\n'


def main(arguments: Sequence[str]) -> int:
    """Write the vectors, or compare them; returns the exit status."""
    if list(arguments) not in ([], ["--check"]):
        print("usage: python -m interop.tensor [--check]", file=sys.stderr)
        return 2
    if arguments:
        if PATH.read_text() == vectors():
            return 0
        print(f"{PATH.name} differs from this implementation", file=sys.stderr)
        return 1
    PATH.write_text(vectors())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
