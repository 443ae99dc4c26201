"""The start of recursive least squares: from the ridge alone, or from what the base was fitted
on."""

from __future__ import annotations

import math

import numpy as np

from streamadapt.models.contract import Prior
from streamadapt.records import Array

__all__ = ["covariances", "information_from_prior", "solve_regular"]

RELATIVE_RIDGE = 1e-12
"""A matrix's ridge is at least so much of its mean diagonal: beside large numbers a fixed one is
lost in rounding."""


def information_from_prior(
    prior: Prior, forgetting: float, ridge: float, features: int, *, shared: bool
) -> tuple[Array, Array]:
    """Return the information matrices and moments of a history worth no more than what a
    forgetting remembers.

    A group's own history, with the mean of all groups' as its prior; or that of all groups
    together (`shared`). Features that the history does not know have the ridge alone.

    Returns
    -------
    ndarray, (groups or 1, features, features), float64
    ndarray, (groups or 1, features, responses), float64
    """
    gram, moment = prior.gram.cpu().numpy(), prior.moment.cpu().numpy()
    examples = float(gram[:, -1, -1].mean())  # the constant's square, summed
    memory = 1.0 / (1.0 - forgetting) if forgetting < 1.0 else math.inf
    worth = min(memory / examples, 1.0) if examples > 0.0 else 1.0
    if shared:
        gram, moment = gram.sum(0, keepdims=True), moment.sum(0, keepdims=True)
    else:
        gram, moment = gram + gram.mean(0), moment + moment.mean(0)
    known = gram.shape[-1]
    m = np.tile(ridge * np.eye(features), (len(gram), 1, 1))
    m[:, :known, :known] += worth * gram
    right = np.zeros((len(moment), features, moment.shape[-1]))
    right[:, :known] = worth * moment
    return m, right


def covariances(information: Array, ridge: float) -> Array:
    """Return the inverses (n, d, d) of information matrices, symmetric to the last bit; ``I /
    ridge`` for a matrix without one."""
    eye = np.eye(information.shape[-1])
    found = solve_regular(information, np.broadcast_to(eye, information.shape), ridge)
    lost = ~found.any((1, 2))
    found[lost] = eye / ridge
    return (found + found.transpose(0, 2, 1)) / 2.0


def solve_regular(m: Array, right: Array, ridge: float) -> Array:
    """Return ``m^-1 right``; 0 where there is no finite solution.

    Parameters
    ----------
    m : ndarray, (n, d, d)
    right : ndarray, (n, d, k)
    ridge : float
        What m has on its diagonals already: more is added where that is too little beside m's
        numbers.
    """
    found, eye = np.zeros(right.shape), np.eye(m.shape[-1])
    for one, wanted, solution in zip(m, right, found, strict=True):
        more = max(RELATIVE_RIDGE * float(one.diagonal().mean()) - ridge, 0.0)
        try:
            solved = np.linalg.solve(one + more * eye, wanted)
        except np.linalg.LinAlgError:
            continue
        if np.isfinite(solved).all():
            solution[:] = solved
    return found
