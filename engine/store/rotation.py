"""The Hadamard rotation: every number of the result is a signed sum of all numbers of the vector.

A sketch of few blocks leaves a vector's large numbers large, and signs alone would not distinguish them from small
ones. The sketch's random signs and this rotation spread them evenly; lengths and products do not change. The matrix of
size 2^k is a Kronecker product of smaller ones and is never built: one factor at a time costs d x 64 instead of d x d.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_LARGEST_FACTOR = 64


def rotate(vectors: Tensor) -> Tensor:
    """Multiplies each row, whose length is a power of two, by the orthogonal Hadamard matrix."""
    rows, left = vectors.shape
    out = vectors
    while left > 1:
        factor = min(left, _LARGEST_FACTOR)
        left //= factor
        matrix = hadamard(factor).to(vectors)
        if left > 1:
            out = matrix @ out.reshape(-1, factor, left)
        else:  # one large product instead of many with a single column
            out = out.reshape(-1, factor) @ matrix
    return out.reshape(rows, -1)


def hadamard(size: int) -> Tensor:
    """The symmetric orthogonal matrix of `size`, a power of two, in double precision."""
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < size:
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64), matrix)
    return matrix / math.sqrt(size)
