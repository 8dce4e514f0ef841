"""Ranks, metrics of ranks, and the simple rankings that every model has to beat."""
