"""The simple rankings that a model has to beat: popularity, and the target items of users with similar histories."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

if TYPE_CHECKING:
    from finetune_kit.data.dataset import Dataset

Scorer = Callable[[np.ndarray], Tensor]
"""From user ids ``(users,)`` to scores ``(users, num_target_items)``."""


def popularity(dataset: Dataset, train: np.ndarray) -> Scorer:
    """Return a scorer by how many training instances an item has; the same for all users."""
    counts = np.bincount(dataset.target.item[train] - 1, minlength=dataset.num_target_items)
    scores = torch.from_numpy(counts.astype(np.float32))
    return lambda user: scores.expand(len(user), -1)


def user_knn(dataset: Dataset, train: np.ndarray, num_neighbours: int = 100) -> Scorer:
    """Return a scorer by the training items of the users whose source histories are most alike.

    Similarity is the cosine between the sets of source items; score(u, y) = Σ sim(u, v) over those users v that have
    y in training among the ``num_neighbours`` most similar users v ≠ u with any training item.
    """
    history: Any = _unit_rows(dataset)  # scipy's types don't know that indexing rows gives a matrix
    user, item = dataset.target.user[train] - 1, dataset.target.item[train] - 1
    has = np.unique(user)
    shape = (dataset.num_users, dataset.num_target_items)
    likes: Any = sparse.csr_matrix((np.ones(len(train), np.float32), (user, item)), shape)
    likes = likes[has]  # (users with training items, num_target_items)
    neighbours = history[has].T.tocsc()

    def scores(wanted: np.ndarray) -> Tensor:
        similarity = (history[wanted - 1] @ neighbours).toarray()  # (users, users with training items)
        similarity[wanted[:, None] - 1 == has] = 0
        keep = min(num_neighbours, len(has))
        nearest = np.argpartition(-similarity, keep - 1, axis=1)[:, :keep]
        weights = np.zeros_like(similarity)
        np.put_along_axis(weights, nearest, np.take_along_axis(similarity, nearest, axis=1), axis=1)
        votes: Any = sparse.csr_matrix(weights) @ likes
        return torch.from_numpy(votes.toarray().astype(np.float32, copy=False))

    return scores


def _unit_rows(dataset: Dataset) -> sparse.csr_matrix:
    """Return users × source items, 1 where a user has the item, rows scaled to length 1."""
    lengths = dataset.source_lengths
    rows = np.repeat(np.arange(dataset.num_users), lengths)
    matrix = sparse.csr_matrix(
        (np.ones(len(rows), np.float32), (rows, np.asarray(dataset.source_items) - 1)),
        (dataset.num_users, dataset.num_source_items),
    )
    matrix.data[:] = 1  # a set: an item counts once however often it came
    norms = np.sqrt(np.asarray(matrix.sum(axis=1)).ravel())
    return sparse.csr_matrix(sparse.diags(1 / np.maximum(norms, 1)) @ matrix)


REFERENCES = {"popularity": popularity, "user-knn": user_knn}
"""Name to function, as ``evaluation.references`` takes them."""
