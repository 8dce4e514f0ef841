"""Searches over the options of a run: `ftkit sweep`."""
