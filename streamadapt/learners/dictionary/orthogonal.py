"""An orthogonal dictionary that is learned online, entry by entry or in small batches, by the
Frank-Wolfe method."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from streamadapt.errors import ConfigError, ShapeError

__all__ = ["OrthogonalDictionary", "polar_factor"]

ANCHOR = 0.01
"""The share of the dictionary that is added to the gradient, in units of the root mean square of
the gradient's singular values."""
MAX_SPREAD = 0.3
"""Newton-Schulz is tried if the standard deviation of the singular values is at most this share of
their mean."""
MAX_ITERATIONS = 12
CLOSE = 1e-5
"""If the distance of ``X^T X`` from the identity (Frobenius norm) is below this, one more
iteration leaves only rounding errors."""
MAX_START = 1.6
"""Newton-Schulz converges to the polar factor if all singular values are below sqrt(3); the start
is scaled so that they are below this."""
SQUARABLE, EXACT = 1e-9, 1e-6
"""The smallest ratio of the smallest to the largest squared singular value at which the squares
have enough digits: with one more iteration, and without it."""
SMALL = 32
"""For a matrix of at most this size, the singular value decomposition costs less than the
eigenvectors of its square."""
TINY = 1e-150
"""A shorter vector counts as zero; the cube of this length is still a floating-point number."""


def polar_factor(matrix: Tensor, near: Tensor | None = None) -> Tensor:
    """Return ``U V^T`` of the singular value decomposition ``U S V^T``, the orthogonal matrix
    nearest to a square one.

    There are three methods. Newton-Schulz, ``X <- X (3 I - X^T X) / 2``, is used if the factor of
    an earlier matrix shows that it will need few iterations: the mean of the singular values is
    about ``tr(near^T matrix) / n``, their mean square is ``|matrix|^2 / n``. (The iteration keeps
    the polar factor of its start, so it starts from the scaled matrix, not from the earlier
    factor.) Otherwise the result comes from the eigenvectors of ``matrix^T matrix``, or from the
    singular value decomposition if that is cheaper or if squaring would lose too many digits. The
    method changes the time, and the result only by rounding errors.

    Parameters
    ----------
    matrix : Tensor, (n, n), float64
        If it is singular, one of its many factors is returned; if it is not finite, NaN.
    near : Tensor, (n, n), optional
        The polar factor of a similar matrix.

    Returns
    -------
    Tensor, (n, n), float64
        Never a view of the arguments. It costs O(n^3) time.

    References
    ----------
    .. [1] Higham (2008), Functions of matrices: theory and computation, chapter 8 (Newton-Schulz:
       equation 8.20).
    """
    # LAPACK would raise an error. NaN is noticed by the pipeline, which restores the learner.
    if not bool(torch.isfinite(matrix).all()):
        return torch.full_like(matrix, torch.nan)
    if near is not None and _has_small_spread(matrix, near):
        factor = _newton_schulz(matrix)
        if factor is not None:
            return factor
    if len(matrix) > SMALL:
        factor = _from_square(matrix)
        if factor is not None:
            return factor
    try:
        u, _, vh = torch.linalg.svd(matrix)
    except RuntimeError:  # it did not converge
        return torch.full_like(matrix, torch.nan)
    nearest: Tensor = u @ vh
    return nearest


def _has_small_spread(matrix: Tensor, near: Tensor) -> bool:
    n = len(matrix)
    mean = float((near * matrix).sum()) / n
    length = float(torch.linalg.vector_norm(matrix))
    return mean > 0.0 and length * length / n <= (1.0 + MAX_SPREAD**2) * mean * mean < math.inf


def _from_square(matrix: Tensor) -> Tensor | None:
    """Return ``matrix (matrix^T matrix)^(-1/2)``; None if squaring loses too many digits."""
    try:
        values, vectors = torch.linalg.eigh(matrix.mT @ matrix)
    except RuntimeError:  # it did not converge, or the squares are infinite
        return None
    ascending = values.tolist()
    least, largest = ascending[0], ascending[-1]
    if not least > SQUARABLE * largest:
        return None
    factor: Tensor = matrix @ ((vectors * values.rsqrt()) @ vectors.mT)
    return factor if least > EXACT * largest else _iterated(factor, factor.mT @ factor)


def _newton_schulz(matrix: Tensor) -> Tensor | None:
    """Iterate until the matrix is orthogonal; None if that takes too many iterations."""
    square = matrix.mT @ matrix
    bound = square.abs().sum(0).amax()  # no squared singular value exceeds it
    identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    x, square = matrix * (MAX_START / bound.sqrt()), square * (MAX_START**2 / bound)
    for _ in range(MAX_ITERATIONS):
        close = float(torch.dist(square, identity)) < CLOSE
        x = _iterated(x, square)
        if close:
            return x
        square = x.mT @ x
    return None


def _iterated(x: Tensor, square: Tensor) -> Tensor:
    """Return ``x (3 I - x^T x) / 2``."""
    return torch.addmm(x, x, square, beta=1.5, alpha=-0.5)


class OrthogonalDictionary(nn.Module):
    """Maximises ``E ||D^T y||_3^3 / 3`` over the matrices D of spectral norm at most one, for a
    stream of vectors y [1]_.

    Per entry, or with the mean over a batch of entries y, t = 0, 1, ... counting the updates::

        c = D^T y,    G <- (1 - rho) G + rho y (c |c|)^T
        S = polar(G),    D <- D + gamma (S - D)
        rho = min(1, 4 / (t + 1)^.5),    gamma = min(1, 2 / (t + 2)^.75)

    D always has a spectral norm of at most one. The extreme points of this set are the orthogonal
    matrices. If y is a sparse combination of orthogonal atoms, the maximum is the matrix of these
    atoms, up to order and sign. Two things differ from the published form:

    * y is scaled to length one (`normalise`). This does not change the maximum, but G no longer
      depends mainly on the longest entries, whose weight grows with the cube of their length. A
      single outlier has no more effect than any other entry.
    * S is the polar factor of ``G + anchor D``, where the second term has `ANCHOR` times the size
      of G. G has rank one at first, and is badly conditioned while it is the mean of only a few
      entries. Many S are then equally good; this one is nearest to D, and is the same on every
      machine.

    Costs per update with B entries: O(B n^2 + n^3) time. State: 3 n^2 float64 numbers.

    Parameters
    ----------
    size : int, >= 1
        n, the number of values of an entry and the number of atoms.
    generator : torch.Generator, optional
        Draws the first D, a random orthogonal matrix. Default: a generator with seed 0.
    floors : (float, float), each in [0, 1]
        The smallest values of rho and gamma. If they are above 0, the dictionary follows a drift:
        ``(.02, .01)`` remembers about a hundred updates.
    normalise : bool
        Whether to scale each y to length one.
    device : torch.device, optional

    Attributes
    ----------
    dictionary, gradient, factor : Tensor, (n, n), float64
        D, G and S. Column j of D is atom j.
    step : Tensor, (), int64
        t, the number of updates.

    References
    ----------
    .. [1] Xue & Lau (2021), Online orthogonal dictionary learning based on Frank-Wolfe method,
       arXiv:2103.01484. The exponents follow from its rate, O(ln t / t^(1/4)); the constants are
       our own.
    """

    dictionary: Tensor
    gradient: Tensor
    factor: Tensor
    step: Tensor

    def __init__(
        self,
        size: int,
        *,
        generator: torch.Generator | None = None,
        floors: tuple[float, float] = (0.0, 0.0),
        normalise: bool = True,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        if size < 1:
            raise ConfigError("size", size, "a whole number >= 1")
        if len(floors) != 2 or not all(0.0 <= floor <= 1.0 for floor in floors):
            raise ConfigError("floors", floors, "two numbers from 0 to 1, for rho and gamma")
        self.size = size
        self.floors = floors
        self.normalise = normalise
        generator = generator or torch.Generator().manual_seed(0)
        start, _ = torch.linalg.qr(
            torch.randn(size, size, generator=generator, dtype=torch.float64)
        )
        self.register_buffer("dictionary", start.to(device))
        self.register_buffer("gradient", torch.zeros_like(self.dictionary))
        self.register_buffer("factor", self.dictionary.clone())
        self.register_buffer("step", torch.zeros((), dtype=torch.int64, device=device))
        self._atoms: tuple[Tensor, int, Tensor] | None = None

    def rates(self, step: int, boost: float = 1.0) -> tuple[float, float]:
        """Return rho and gamma of update `step`, counted from 0, each multiplied by `boost`, at
        most 1."""
        rho = max(self.floors[0], 4.0 / math.sqrt(step + 1.0))
        gamma = max(self.floors[1], 2.0 / (step + 2.0) ** 0.75)
        return min(1.0, boost * rho), min(1.0, boost * gamma)

    def update(self, y: Tensor, boost: float = 1.0) -> None:
        """Learn from one entry (n,), or from a batch (B, n) in one update; entries of zeros have
        no effect on the direction of G.

        Raises
        ------
        ShapeError
            If y has another shape; then nothing changes.
        """
        y = self._checked(y).reshape(-1, self.size)
        if self.normalise:
            y = y / torch.linalg.vector_norm(y, dim=1, keepdim=True).clamp_min(TINY)
        d, g, s = self.dictionary, self.gradient, self.factor
        rho, gamma = self.rates(int(self.step), boost)
        c = y @ d
        g.mul_(1.0 - rho).addmm_(y.mT, c * c.abs(), alpha=rho / len(y))
        self.step.add_(1)
        length = float(torch.linalg.vector_norm(g))
        if length > 0.0:
            s.copy_(polar_factor(torch.add(g, d, alpha=ANCHOR * length / math.sqrt(self.size)), s))
            d.lerp_(s, gamma)

    @property
    def atoms(self) -> Tensor:
        """The orthogonal matrix nearest to D, (n, n), with which entries are encoded and
        decoded."""
        d = self.dictionary
        if self._atoms is None or self._atoms[0] is not d or self._atoms[1] != d._version:
            # Computed from D alone, not from earlier results, so a restored dictionary has the
            # same bits.
            self._atoms = d, d._version, polar_factor(d, d)
        return self._atoms[2]

    def encode(self, y: Tensor, threshold: float | Tensor = 0.0) -> Tensor:
        """Return the coefficients of y, (n,) or (B, n); coefficients whose absolute value is below
        `threshold` become zero."""
        c = self._checked(y) @ self.atoms
        return torch.where(c.abs() >= threshold, c, 0.0).to(y.dtype)

    def decode(self, c: Tensor) -> Tensor:
        """Return the entry, (n,) or (B, n), that has these coefficients; ``decode(encode(y))`` is
        y."""
        return (self._checked(c) @ self.atoms.mT).to(c.dtype)

    def error(self, y: Tensor, least: float = 0.0) -> Tensor:
        """Return the distance of y, (n,) or (B, n), from its sparse code, divided by the length of
        y: () or (B,), in [0, 1).

        The sparse code keeps the coefficients that are at least as large as their root mean
        square, so it needs no threshold. If an entry is a combination of few atoms, the error is
        almost zero. If it needs all atoms (Gaussian coefficients), the error is about .45. An
        entry of zeros has the error zero.

        Parameters
        ----------
        least : float, >= 0
            A shorter entry is divided by this length instead of its own, so that an entry of
            almost zero is not judged by its noise.
        """
        c = self._checked(y) @ self.atoms
        length = torch.linalg.vector_norm(c, dim=-1)
        # Slightly less than the root mean square: if all coefficients are equal, all are kept.
        small = torch.where(
            c.abs() < (length * ((1.0 - 1e-9) / math.sqrt(self.size))).unsqueeze(-1), c, 0.0
        )
        rest = torch.linalg.vector_norm(small, dim=-1)
        return torch.where(length > 0.0, rest / length.clamp_min(least), 0.0).to(y.dtype)

    def _checked(self, y: Tensor) -> Tensor:
        if y.ndim not in (1, 2) or y.shape[-1] != self.size or y.numel() == 0:
            raise ShapeError(
                f"entries must be ({self.size},) or (B, {self.size}), got {tuple(y.shape)}"
            )
        return y.detach().double()
