"""How a node learns a chain from strangers: greeting, questions, and catching up.

`messages` are the values on the wire, `frames` moves them, `handshake` is the greeting that every
new connection begins with, `server` answers questions from the store, `client` asks them,
`catch_up` turns the answers into executed, certified blocks.
"""
