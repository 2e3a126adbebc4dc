"""tensorwire."""
