"""The arithmetic of recursive least squares: covariances, gains and the start from a base's fit.

Everything works in place on float64 tensors with a leading dimension of independent regressions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from streamadapt.models.contract import Prior

__all__ = [
    "absorb",
    "covariance_bound",
    "forget",
    "information_from_prior",
    "inverse",
    "solve_information",
    "solve_regular",
]

RELATIVE_RIDGE = 1e-12
"""A matrix's ridge is at least so much of its mean diagonal: beside large numbers a fixed one is
lost in rounding."""


def covariance_bound(forgetting: float, features: int, ridge: float) -> float:
    """Return what no eigenvalue of P exceeds: a coordinate's leak is at most a round of `features`
    examples old."""
    return 1.0 / (ridge * forgetting ** (features - 1))


def forget(p: Tensor, forgetting: Tensor, inverse_leak: Tensor, turn: int) -> None:
    """``P^-1 <- forgetting P^-1 + leak e e^T``, e the unit vector of the coordinate whose turn it
    is.

    Parameters
    ----------
    p : Tensor, (n, d, d)
    forgetting, inverse_leak : Tensor, (n, 1, 1)
        `inverse_leak` is infinite where nothing leaks.
    """
    p.div_(forgetting)
    column = p[:, :, turn : turn + 1]
    _subtract_square(p, column * (inverse_leak + column[:, turn : turn + 1]).rsqrt())


def absorb(p: Tensor, x: Tensor) -> Tensor:
    """``P^-1 <- P^-1 + x x^T``; return the gain ``P x`` with the new P, (n, d, 1), of `x`, (n, d,
    1)."""
    px = torch.bmm(p, x)
    size = torch.bmm(x.mT, px).add_(1.0)
    _subtract_square(p, px * size.rsqrt())
    return px.div_(size)


def _subtract_square(p: Tensor, root: Tensor) -> None:
    """``p -= root root^T``, symmetric to the last bit: any asymmetry would grow by 1 / forgetting
    every time."""
    p.addcmul_(root, root.mT, value=-1.0)


def _more_ridge(m: Tensor, ridge: float) -> Tensor:
    """Return what must be added to m (n, d, d), which has `ridge` on its diagonals; zeros where
    that will do."""
    mean = m.diagonal(dim1=-2, dim2=-1).mean(-1)
    eye = torch.eye(m.shape[-1], dtype=m.dtype, device=m.device)
    return (RELATIVE_RIDGE * mean - ridge).clamp_min(0.0).view(-1, 1, 1) * eye


def inverse(m: Tensor, ridge: float | None = None) -> Tensor:
    """Return the inverses of matrices; NaN for one that has none.

    Parameters
    ----------
    m : Tensor, (n, d, d)
    ridge : float, optional
        What m has on its diagonals already: more is added where that is too little beside m's
        numbers. None: only to a matrix that has no inverse without it.
    """
    if ridge is None:
        found = _inverse(m)
        return torch.where(torch.isnan(found), _inverse(m + _more_ridge(m, 0.0)), found)
    return _inverse(m + _more_ridge(m, ridge))


def _inverse(m: Tensor) -> Tensor:
    found, info = torch.linalg.inv_ex(m)
    fine = (info == 0) & torch.isfinite(found).all(-1).all(-1)
    return torch.where(fine.view(-1, 1, 1), found, torch.nan)


def solve_regular(m: Tensor, right: Tensor, ridge: float) -> Tensor:
    """Return ``m^-1 right``, with a ridge as `inverse` has it; 0 where there is no finite
    solution."""
    found, info = torch.linalg.solve_ex(m + _more_ridge(m, ridge), right)
    fine = (info == 0) & torch.isfinite(found).all(-1).all(-1)
    return torch.where(fine.view(-1, 1, 1), found, 0.0)


def solve_information(m: Tensor, right: Tensor) -> Tensor:
    """Return ``M^-1 right``; zeros for a regression whose M has lost its positive definiteness to
    rounding.

    Parameters
    ----------
    m : Tensor, (n, d, d)
    right : Tensor, (n, d, k)
    """
    factor, info = torch.linalg.cholesky_ex(m)
    found = torch.cholesky_solve(right, factor)
    return torch.where(info.view(-1, 1, 1) == 0, found, 0.0)


def information_from_prior(
    prior: Prior, forgetting: float, ridge: float, features: int, *, shared: bool
) -> tuple[Tensor, Tensor]:
    """Return the information matrices and moments of a history worth no more than what a
    forgetting remembers.

    A group's own history, with the mean of all groups' as its prior; or that of all groups
    together (`shared`). Features that the history does not know have the ridge alone.

    Returns
    -------
    Tensor, (groups or 1, features, features), float64
    Tensor, (groups or 1, features, responses), float64
    """
    gram, moment = prior.gram.cpu(), prior.moment.cpu()
    examples = gram[:, -1, -1].mean()  # the constant's square, summed
    memory = 1.0 / (1.0 - forgetting) if forgetting < 1.0 else math.inf
    worth = torch.clamp(memory / examples, max=1.0)
    if shared:
        gram, moment = gram.sum(0, keepdim=True), moment.sum(0, keepdim=True)
    else:
        gram, moment = gram + gram.mean(0), moment + moment.mean(0)
    known = gram.shape[-1]
    m = (ridge * torch.eye(features, dtype=torch.float64)).repeat(len(gram), 1, 1)
    m[:, :known, :known] += worth * gram
    right = torch.zeros(len(moment), features, moment.shape[-1], dtype=torch.float64)
    right[:, :known] = worth * moment
    return m, right
