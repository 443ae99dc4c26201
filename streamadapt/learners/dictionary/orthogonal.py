"""An orthogonal dictionary, learned from one entry (or one small batch) after another by
Frank-Wolfe."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from streamadapt.errors import ConfigError, ShapeError

__all__ = ["OrthogonalDictionary", "polar_factor"]

ANCHOR = 0.01
"""How much of the dictionary is added to the gradient, in units of the gradient's root-mean-square
singular value."""
CALM = 0.3
"""Newton-Schulz is tried where the singular values spread by no more than this share of their
mean."""
MOST_ITERATIONS = 12
CLOSE = 1e-5
"""Where ``X^T X`` is so near to the identity (Frobenius), one more iteration leaves rounding
errors only."""
LARGEST_START = 1.6
"""Newton-Schulz converges to the polar factor from singular values below sqrt(3); what it starts
from is below this."""
SQUARABLE, EXACT = 1e-9, 1e-6
"""Least ratio of the smallest to the largest squared singular value at which the squares still
have digits enough: with one iteration to polish, and without."""
SMALL = 32
"""The decomposition of a matrix of at most this size costs less than the detour by its square."""
TINY = 1e-150
"""What is shorter counts as zero; its cube can still be written down."""


def polar_factor(matrix: Tensor, near: Tensor | None = None) -> Tensor:
    """Return ``U V^T`` of the singular value decomposition ``U S V^T``, the orthogonal matrix
    nearest to a square one.

    Newton-Schulz, ``X <- X (3 I - X^T X) / 2``, where a factor from before tells that it will need
    few iterations: the mean of the singular values is ``tr(near^T matrix) / n``, their mean square
    ``|matrix|^2 / n``. (The iteration keeps the polar factor of what it starts from. So it starts
    from the matrix, brought to a scale; to start from the old factor would be to stay there.)
    Otherwise from the eigenvectors of ``matrix^T matrix``, or from the decomposition itself where
    that is cheaper or where squaring would cost too many digits. Which of the three is used
    changes the time, and the result by rounding errors.

    Parameters
    ----------
    matrix : Tensor, (n, n), float64
        Where it is singular, one of the many factors is returned; where it is not finite, NaN.
    near : Tensor, (n, n), optional
        The polar factor of a matrix like this one.

    Returns
    -------
    Tensor, (n, n), float64
        Never a view of the arguments. Costs O(n^3).

    References
    ----------
    .. [1] Higham (2008), Functions of matrices: theory and computation, chapter 8 (Newton-Schulz:
       equation 8.20).
    """
    # LAPACK would raise; NaN is what a guard can see and put right
    if not bool(torch.isfinite(matrix).all()):
        return torch.full_like(matrix, torch.nan)
    if near is not None and _is_calm(matrix, near):
        found = _newton_schulz(matrix)
        if found is not None:
            return found
    if len(matrix) > SMALL:
        found = _from_square(matrix)
        if found is not None:
            return found
    try:
        u, _, vh = torch.linalg.svd(matrix)
    except RuntimeError:  # it did not converge
        return torch.full_like(matrix, torch.nan)
    nearest: Tensor = u @ vh
    return nearest


def _is_calm(matrix: Tensor, near: Tensor) -> bool:
    n = len(matrix)
    mean = float((near * matrix).sum()) / n
    length = float(torch.linalg.vector_norm(matrix))
    return mean > 0.0 and length * length / n <= (1.0 + CALM**2) * mean * mean < math.inf


def _from_square(matrix: Tensor) -> Tensor | None:
    """``matrix (matrix^T matrix)^(-1/2)``; None where squaring costs too many digits."""
    try:
        values, vectors = torch.linalg.eigh(matrix.mT @ matrix)
    except RuntimeError:  # it did not converge, or the squares are beyond all numbers
        return None
    ascending = values.tolist()
    least, largest = ascending[0], ascending[-1]
    if not least > SQUARABLE * largest:
        return None
    factor: Tensor = matrix @ ((vectors * values.rsqrt()) @ vectors.mT)
    return factor if least > EXACT * largest else _iterated(factor, factor.mT @ factor)


def _newton_schulz(matrix: Tensor) -> Tensor | None:
    """Iterate until orthogonal; None where that takes too long."""
    square = matrix.mT @ matrix
    bound = square.abs().sum(0).amax()  # no squared singular value exceeds it
    identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    x, square = matrix * (LARGEST_START / bound.sqrt()), square * (LARGEST_START**2 / bound)
    for _ in range(MOST_ITERATIONS):
        close = float(torch.dist(square, identity)) < CLOSE
        x = _iterated(x, square)
        if close:
            return x
        square = x.mT @ x
    return None


def _iterated(x: Tensor, square: Tensor) -> Tensor:
    """``x (3 I - x^T x) / 2``."""
    return torch.addmm(x, x, square, beta=1.5, alpha=-0.5)


class OrthogonalDictionary(nn.Module):
    """Maximises ``E ||D^T y||_3^3 / 3`` over the matrices of spectral norm at most one, y streamed
    [1]_.

    Per entry, or with the mean over a batch of entries y, t = 0, 1, ... counting the updates::

        c = D^T y,    G <- (1 - rho) G + rho y (c |c|)^T
        S = polar(G),    D <- D + gamma (S - D)
        rho = min(1, 4 / (t + 1)^.5),    gamma = min(1, 2 / (t + 2)^.75)

    D stays within the ball, whose extreme points are the orthogonal matrices; where y is a sparse
    combination of orthogonal atoms, they are its maximum, up to order and sign. Two things are
    added to the published form:

    * y is brought to length one (`normalise`). The maximum stays where it is, while G no longer
      hangs on the longest entries, whose weight grows with the cube of their length; a single wild
      entry can do no more than any other.
    * S is the polar factor of ``G + anchor D``, `ANCHOR` of G's size. G is of rank one at first
      and badly conditioned as long as few entries make it up; of the many S that are then as good
      as each other this is the one nearest to D, and the same on every machine.

    Costs per update of B entries: O(B n^2 + n^3) time; 3 n^2 float64 numbers.

    Parameters
    ----------
    size : int, >= 1
        n, the numbers of an entry and of atoms.
    generator : torch.Generator, optional
        Draws the first D, a random orthogonal matrix. Default: one seeded with 0.
    floors : (float, float), each in [0, 1]
        rho and gamma never fall below them. Above 0 the dictionary keeps tracking one that drifts:
        ``(.02, .01)`` remembers some hundred updates.
    normalise : bool
    device : torch.device, optional

    Attributes
    ----------
    dictionary, gradient, factor : Tensor, (n, n), float64
        D, G and S. Column j of D is atom j.
    step : Tensor, (), int64
        t.

    References
    ----------
    .. [1] Xue & Lau (2021), Online orthogonal dictionary learning based on Frank-Wolfe method,
       arXiv:2103.01484. The exponents follow from its rate, O(ln t / t^(1/4)); the constants are
       ours.
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
        """Return rho and gamma of update `step`, counted from 0; `boost` times as large, within
        1."""
        rho = max(self.floors[0], 4.0 / math.sqrt(step + 1.0))
        gamma = max(self.floors[1], 2.0 / (step + 2.0) ** 0.75)
        return min(1.0, boost * rho), min(1.0, boost * gamma)

    def update(self, y: Tensor, boost: float = 1.0) -> None:
        """Learn from one entry (n,), or from a batch (B, n) in one update; zeros say nothing.

        Raises
        ------
        ShapeError
            Before anything changes.
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
        """The orthogonal matrix nearest to D, (n, n): what is encoded and decoded with."""
        d = self.dictionary
        if self._atoms is None or self._atoms[0] is not d or self._atoms[1] != d._version:
            # Of D alone, never of what was computed before: a restored dictionary has the same
            # bits.
            self._atoms = d, d._version, polar_factor(d, d)
        return self._atoms[2]

    def encode(self, y: Tensor, threshold: float | Tensor = 0.0) -> Tensor:
        """Return the coefficients of y, (n,) or (B, n), with those smaller in size than
        `threshold` set to zero."""
        c = self._checked(y) @ self.atoms
        return torch.where(c.abs() >= threshold, c, 0.0).to(y.dtype)

    def decode(self, c: Tensor) -> Tensor:
        """Return the entry, (n,) or (B, n), that coefficients stand for; ``decode(encode(y))`` is
        y."""
        return (self._checked(c) @ self.atoms.mT).to(c.dtype)

    def error(self, y: Tensor, least: float = 0.0) -> Tensor:
        """Return how far y, (n,) or (B, n), is from its sparse code, relative to its length: () or
        (B,), in [0, 1).

        The code keeps the coefficients of at least root-mean-square size, so no threshold has to
        be chosen: where few atoms make up the entry the rest is next to nothing, and where it
        needs all of them (Gaussian coefficients) the rest is .45 of its length. An entry of zeros
        has no error.

        Parameters
        ----------
        least : float, >= 0
            The length of an entry counts as at least so much: what is as good as zero is not
            judged by its noise.
        """
        c = self._checked(y) @ self.atoms
        length = torch.linalg.vector_norm(c, dim=-1)
        # A hair less than the mean: coefficients that are all alike are all kept.
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
