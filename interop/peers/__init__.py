"""Foreign libp2p peers, each behind the same port, and the trials that Agora's network passes."""
