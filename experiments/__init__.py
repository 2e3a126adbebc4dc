"""The figures and tables of the paper, one script each."""
