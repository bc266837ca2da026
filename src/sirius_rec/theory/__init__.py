"""Pairwise preference models and ε-insensitive regions, in NumPy float64: the oracle for `objectives`."""
