"""An orthogonal dictionary that is learned online, entry by entry or in small batches, by the
Frank-Wolfe method."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from streamadapt.compiled import Kernel
from streamadapt.errors import ConfigError, ShapeError
from streamadapt.learners.dictionary.atoms import (
    OrthogonalState,
    decode,
    encode,
    error,
    orthogonal_room,
    rates,
    update,
)
from streamadapt.learners.dictionary.polar import polar
from streamadapt.records import Array

__all__ = ["OrthogonalDictionary", "random_orthogonal"]


def random_orthogonal(size: int, generator: torch.Generator) -> Array:
    """Return a random orthogonal matrix, (size, size), float64."""
    drawn = torch.randn(size, size, generator=generator, dtype=torch.float64)
    found: Array = torch.linalg.qr(drawn)[0].contiguous().numpy()
    return found


def _learn(s: Any, entries: Any, rho: float, gamma: float, normalise: bool, w: Any) -> None:
    """Learn from entries; without entries compute the atoms."""
    if entries.shape[0] > 0:
        update(s, 0, entries, rho, gamma, normalise, w)
    else:
        polar(s.dictionary[0], w.polar, s.atoms[0])


def _encode_all(atoms: Any, entries: Any, threshold: float, codes: Any) -> None:
    for b in range(entries.shape[0]):
        encode(atoms, entries[b], threshold, codes[b])


def _decode_all(atoms: Any, codes: Any, entries: Any) -> None:
    for b in range(codes.shape[0]):
        decode(atoms, codes[b], entries[b])


def _score_all(atoms: Any, entries: Any, least: float, code: Any, errors: Any) -> None:
    for b in range(entries.shape[0]):
        errors[b] = error(atoms, entries[b], least, code)


_LEARN: Final = Kernel(_learn, "an update of a dictionary")
_ENCODE: Final = Kernel(_encode_all, "the codes of entries")
_DECODE: Final = Kernel(_decode_all, "the entries of codes")
_SCORE: Final = Kernel(_score_all, "the errors of sparse codes")


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

    Attributes
    ----------
    dictionary, gradient, factor : Tensor, (n, n), float64, on the CPU
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
    ) -> None:
        super().__init__()
        if size < 1:
            raise ConfigError("size", size, "a whole number >= 1")
        if len(floors) != 2 or not all(0.0 <= floor <= 1.0 for floor in floors):
            raise ConfigError("floors", floors, "two numbers from 0 to 1, for rho and gamma")
        self.size = size
        self.floors = floors
        self.normalise = normalise
        start = random_orthogonal(size, generator or torch.Generator().manual_seed(0))
        self.register_buffer("dictionary", torch.from_numpy(start))
        self.register_buffer("gradient", torch.zeros_like(self.dictionary))
        self.register_buffer("factor", self.dictionary.clone())
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self._room = orthogonal_room(size)
        self._atoms: tuple[Tensor, int, Tensor] | None = None

    def rates(self, step: int, boost: float = 1.0) -> tuple[float, float]:
        """Return rho and gamma of update `step`, counted from 0, each multiplied by `boost`, at
        most 1."""
        rho, gamma = rates(step, *self.floors, boost)
        return rho, gamma

    def update(self, y: Tensor, boost: float = 1.0) -> None:
        """Learn from one entry (n,), or from a batch (B, n) in one update; entries of zeros have
        no effect on the direction of G.

        Raises
        ------
        ShapeError
            If y has another shape; then nothing changes.
        """
        entries = self._checked(y)
        self._run(entries, *self.rates(int(self.step), boost))
        self._atoms = None

    def _run(self, entries: Array, rho: float, gamma: float) -> Array:
        """Run the kernel, and return its atoms, (n, n)."""
        buffers = (self.dictionary, self.gradient, self.factor, self.step)
        d, g, factor, step = (buffer.numpy()[None] for buffer in buffers)
        state = OrthogonalState(d, g, factor, step, atoms=np.zeros_like(d))
        _LEARN.call(state, entries, rho, gamma, self.normalise, self._room)
        found: Array = state.atoms[0]
        return found

    @property
    def atoms(self) -> Tensor:
        """The orthogonal matrix nearest to D, (n, n), with which entries are encoded and
        decoded."""
        d = self.dictionary
        if self._atoms is None or self._atoms[0] is not d or self._atoms[1] != d._version:
            found = self._run(np.zeros((0, self.size)), 0.0, 0.0)
            self._atoms = d, d._version, torch.from_numpy(found)
        return self._atoms[2]

    def encode(self, y: Tensor, threshold: float | Tensor = 0.0) -> Tensor:
        """Return the coefficients of y, (n,) or (B, n); coefficients whose absolute value is below
        `threshold` become zero."""
        entries = self._checked(y)
        codes = np.empty_like(entries)
        _ENCODE.call(self.atoms.numpy(), entries, 0.0, codes)
        c = torch.from_numpy(codes).view(y.shape)
        return torch.where(c.abs() >= threshold, c, 0.0).to(y)

    def decode(self, c: Tensor) -> Tensor:
        """Return the entry, (n,) or (B, n), that has these coefficients; ``decode(encode(y))`` is
        y."""
        codes = self._checked(c)
        entries = np.empty_like(codes)
        _DECODE.call(self.atoms.numpy(), codes, entries)
        return torch.from_numpy(entries).view(c.shape).to(c)

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
        entries = self._checked(y)
        errors = np.empty(len(entries))
        _SCORE.call(self.atoms.numpy(), entries, float(least), self._room.code, errors)
        return torch.from_numpy(errors).view(y.shape[:-1]).to(y)

    def _checked(self, y: Tensor) -> Array:
        """Return entries as an array, (B, n)."""
        if y.ndim not in (1, 2) or y.shape[-1] != self.size or y.numel() == 0:
            raise ShapeError(
                f"entries must be ({self.size},) or (B, {self.size}), got {tuple(y.shape)}"
            )
        entries: Array = np.ascontiguousarray(y.detach().cpu().double().numpy())
        return entries.reshape(-1, self.size)
