"""The ledger and block ordering of Agora: pure and deterministic, without I/O, clock or chance."""
