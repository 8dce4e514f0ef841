"""Recommending with a finished run: histories of any users in, their best target items out, as a stream."""
