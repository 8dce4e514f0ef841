"""Datasets on disk, their preparation from raw events, and the batches made of them."""
