"""A child process that reports like a node and does nothing else: `python -m tests.node.fake_node`.

`--misbehave KIND` as the first options makes node 1 (by its data directory) behave badly.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

from node.report import Finalized, Notice, Progress, Report, Started, encode_report
from p2p.identity import Identity

PEERS = [str(Identity(bytes([index]) * 32).peer_id) for index in range(8)]


def tell(report: Report) -> None:
    sys.stdout.buffer.write(encode_report(report))
    sys.stdout.buffer.flush()


def main() -> None:
    """Report a block every 20 ms until stopped."""
    arguments = sys.argv[1:]
    kind = arguments[arguments.index("--misbehave") + 1] if "--misbehave" in arguments else ""
    directory = Path(arguments[arguments.index("--data-dir") + 1])
    index = int(directory.name.removeprefix("node-"))
    kind = kind if index == 1 else ""
    stop = threading.Event()
    if kind == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: stop.set())

        def watch_input() -> None:
            while os.read(0, 1024):  # not sys.stdin: its lock would abort a stopping process
                pass
            stop.set()

        threading.Thread(target=watch_input, daemon=True).start()
    if index:
        assert "--bootstrap" in arguments
        assert "--chain-id" in arguments
    if kind == "fails":
        print("agora: no disk", file=sys.stderr)
        sys.exit(1)
    tell(
        Started(
            t_s=time.time(),
            peer_id=PEERS[index],
            addresses=(f"/ip4/127.0.0.1/tcp/4001/p2p/{PEERS[index]}",),
            chain_id="ab" * 32,
            network="local",
            data_dir=str(directory),
            pid=0,
        )
    )
    sys.stdout.write("this is no report\n")
    tell(Notice(t_s=0.0, level="info", text="hello"))
    memory = directory / "height"
    height = int(memory.read_text()) if memory.exists() else 0
    while not stop.is_set():
        height += 1
        root = f"{height:064x}" if kind != "forks" else "f" * 64
        exchanges = {peer: height for peer in PEERS if peer != PEERS[index]}
        tell(Finalized(t_s=0.0, height=height, epoch=0, state_root=root, transactions=2))
        tell(
            Progress(
                t_s=0.0,
                height=height,
                finalized=height,
                epoch=0,
                peers=3,
                transactions=2 * height,
                loss_start=5.0,
                loss=5.0 if kind == "dull" else 5.0 - height / 100,
                exchanges=exchanges,
            )
        )
        memory.with_suffix(".new").write_text(str(height))
        memory.with_suffix(".new").replace(memory)
        if kind == "dies" and height == 3:
            signal.raise_signal(signal.SIGKILL)
        stop.wait(0.02)


if __name__ == "__main__":
    main()
