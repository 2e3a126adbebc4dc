"""Everything that decides whether Agora works."""
