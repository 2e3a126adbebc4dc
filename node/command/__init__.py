"""The verbs of the command line, one file a concept; imported only when used."""

__all__: list[str] = []
