"""The go-libp2p daemon (p2pd) of the `hivemind` wheel, driven over its control socket."""
