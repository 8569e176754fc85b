"""Sums of products of samples, which add over any partition of them: Moments, Variance, and the NormalEquations of a regression."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from channelscope.display import Facts, Shown, spread
from channelscope.errors import ShapeError
from channelscope.types import Float, Index, Tensor

BLOCKED_FROM = 256
"""Coordinates from which on a symmetric product is cheaper in four blocks, one of them copied."""

MEAN_SAMPLE = 256
"""Rows from which a mean is guessed before it is known."""


@dataclass(frozen=True, repr=False)
class Moments(Shown):
    """Count, mean and scatter of some samples.

    `+` merges disjoint sample sets, `[]` keeps some coordinates. Nothing here assumes a distribution.

    Examples
    --------
    >>> one, other = Moments.of(torch.tensor([[0.0], [2.0]])), Moments.of(torch.tensor([[7.0]]))
    >>> (one + other).mean.tolist(), (one + other).scatter.tolist()
    ([3.0], [[26.0]])
    """

    count: float
    """number of samples"""
    mean: Float[Tensor, "d"]
    """sample mean, float64"""
    scatter: Float[Tensor, "d d"]
    """sum over samples of (y − mean)(y − mean)', float64, not divided by anything"""

    def facts(self) -> Facts:
        """How many samples of how many variables, and the ranges of their means and variances."""
        return f"Moments({self.count:,.0f} samples of {len(self)} variables)", [
            ("mean", spread(self.mean)),
            ("variance", spread(self.variance)),
        ]

    @classmethod
    def zero(cls, d: int) -> "Moments":
        """Moments of no samples: the neutral element of `+`."""
        return cls(0.0, torch.zeros(d, dtype=torch.float64), torch.zeros(d, d, dtype=torch.float64))

    @classmethod
    def of(cls, samples: Float[Tensor, "samples d"]) -> "Moments":
        """Moments of a block of samples, multiplied in the samples' own precision (at least float32).

        Parameters
        ----------
        samples
            One sample per row.

        Returns
        -------
        Moments
            Float64.

        References
        ----------
        Chan, Golub, LeVeque 1983. Checked against tests/pencil.py::moments.
        """
        rows = samples if samples.dtype == torch.float64 else samples.float()
        if len(rows) == 0:
            return cls.zero(rows.shape[1])
        origin = approximate_mean(rows)
        centred = rows - origin
        remainder = centred.sum(0)
        remainder = remainder.double()
        scatter = gram(centred).double().addr_(remainder, remainder, alpha=-1 / len(rows))
        return cls(float(len(rows)), origin.double() + remainder / len(rows), scatter)

    def __add__(self, other: "Moments") -> "Moments":
        """Moments of the union of two disjoint sample sets.

        Raises
        ------
        ShapeError
            If they have different numbers of coordinates.

        References
        ----------
        Chan, Golub, LeVeque 1983.
        """
        if self.mean.shape != other.mean.shape:
            raise ShapeError(f"cannot add moments of {len(self.mean)} and {len(other.mean)} coordinates")
        count = self.count + other.count
        if count == 0:
            return self
        return self._with(other, self.scatter + other.scatter)

    def add_(self, other: "Moments") -> "Moments":
        """The sum, with its scatter in the memory of the first one's, which must have samples and no further use."""
        return self._with(other, self.scatter.add_(other.scatter))

    def _with(self, other: "Moments", scatter: Float[Tensor, "d d"]) -> "Moments":
        """The union with other samples; `scatter` is the sum of both, each about its own mean, and is changed in place."""
        count, gap = self.count + other.count, other.mean - self.mean
        return Moments(count, self.mean + gap * (other.count / count), scatter.addr_(gap, gap, alpha=self.count * other.count / count))

    def __getitem__(self, index: Index) -> "Moments":
        """Moments of some coordinates; indexing commutes with measuring."""
        return Moments(self.count, self.mean[index], self.scatter[index][:, index])

    def scaled(self, factor: Float[Tensor, "d"], shift: Float[Tensor, "d"]) -> "Moments":
        """Moments of factor · y + shift, coordinate by coordinate; both (d,)."""
        return Moments(self.count, self.mean * factor + shift, self.scatter * torch.outer(factor, factor))

    def __len__(self) -> int:
        """Number of coordinates."""
        return len(self.mean)

    @property
    def covariance(self) -> Float[Tensor, "d d"]:
        """Scatter divided by the count (maximum likelihood)."""
        return self.scatter / self.count

    @property
    def variance(self) -> Float[Tensor, "d"]:
        """Diagonal of `covariance`."""
        return self.scatter.diagonal() / self.count


def approximate_mean(rows: Float[Tensor, "samples d"]) -> Float[Tensor, "d"]:
    """Mean of some hundred evenly spaced rows, a point near the mean of all.

    Samples are measured from it, so that products in float32 keep their digits; sums correct the difference from the mean.

    Parameters
    ----------
    rows
        One sample per row.

    Returns
    -------
    Tensor
        (d,), in the precision of the rows.

    Examples
    --------
    >>> approximate_mean(torch.tensor([[0.0, 1.0], [2.0, 3.0]])).tolist()
    [1.0, 2.0]
    """
    return rows[:: len(rows) // MEAN_SAMPLE | 1].mean(0)  # an odd step meets every column of a map


def gram(rows: Float[Tensor, "samples d"], out: Float[Tensor, "d d"] | None = None) -> Float[Tensor, "d d"]:
    """Gram matrix rows' rows, with each off-diagonal block computed once.

    Parameters
    ----------
    rows
        One sample per row.
    out
        Where to write the result.

    Returns
    -------
    Tensor
        (d, d), exactly symmetric, in the precision of the rows.

    Examples
    --------
    >>> gram(torch.tensor([[1.0, 2.0], [3.0, 4.0]])).tolist()
    [[10.0, 14.0], [14.0, 20.0]]
    """
    d = rows.shape[1]
    out = rows.new_empty(d, d) if out is None else out
    if d < BLOCKED_FROM:
        product = (rows.T @ rows).triu_()  # BLAS does not promise that the two triangles agree
        return torch.add(product, product.triu(1).T, out=out)
    half = d // 128 * 64  # blocks that begin at whole cache lines
    left, right = rows[:, :half], rows[:, half:]
    gram(left, out[:half, :half])
    gram(right, out[half:, half:])
    out[:half, half:] = left.T @ right
    out[half:, :half] = out[:half, half:].T
    return out


BLOCK = 32768
"""Samples gathered before they are multiplied: adding to a shard costs as much as the products of some hundred samples."""

BLOCK_BYTES = 16 * 2**20
"""Most memory the gathered samples of one accumulator take."""

ROWS = 256
"""Rows of a symmetric product that are kept together, from the diagonal on."""

ShardSlices: TypeAlias = Sequence[tuple[int, slice]]
"""Which images of a batch belong to which shard; a batch is sorted by shard."""


def _row_blocks(channels: int) -> list[tuple[int, int]]:
    return [(start, min(start + ROWS, channels)) for start in range(0, channels, ROWS)]


def products_bytes(channels: int, compact: bool) -> int:
    """Memory that the products of one shard take at most.

    Parameters
    ----------
    channels
        Number of coordinates.
    compact
        Whether they are summed in float32.

    Returns
    -------
    int
        Bytes.

    Examples
    --------
    >>> products_bytes(512, compact=False), products_bytes(1024, compact=True) / (4 * 1024 * 1024)
    (1572864, 0.625)
    """
    return (4 if compact else 8) * sum((stop - start) * (channels - start) for start, stop in _row_blocks(channels))


class _Products:
    """Count, sums and products of one shard's samples, measured from one point.

    Of the product of the channels, blocks of rows are kept from the diagonal on; below the diagonal a block equals its upper part
    up to rounding. The first block of samples stays in the precision in which it was multiplied, and so do all where the sums are
    to be compact.
    """

    def __init__(self, compact: bool):
        self.count, self.compact = 0, compact
        self.rows: list[Tensor] = []
        self.sums = self.border = torch.empty(0)

    def add(self, samples: Float[Tensor, "samples channels"], targets: Float[Tensor, "samples targets"]) -> None:
        """Add some samples."""
        sums = torch.cat([samples.sum(0), targets.sum(0)])
        border = torch.cat([targets.T @ samples, targets.T @ targets], 1)
        first, self.count = not self.count, self.count + len(samples)
        self.sums, self.border = (sums.double(), border.double()) if first else (self.sums.add_(sums), self.border.add_(border))
        for number, (start, stop) in enumerate(_row_blocks(samples.shape[1])):
            left = samples[:, start:stop]
            if first:
                self.rows.append(left.T @ samples[:, start:])
            elif self.compact:
                self.rows[number].addmm_(left.T, samples[:, start:])
            else:
                self.rows[number] = self.rows[number].double().add_(left.T @ samples[:, start:])

    def moments(self, origin: Float[Tensor, "d"]) -> Moments:
        """Moments about the samples' own mean, on the CPU."""
        channels, d = origin.numel() - len(self.border), origin.numel()
        scatter = self.sums.new_empty(d, d)
        for (start, stop), rows in zip(_row_blocks(channels), self.rows, strict=True):
            scatter[start:stop, start:channels] = rows
            scatter[stop:channels, start:stop] = rows[:, stop - start :].T
        scatter[channels:] = self.border
        scatter[:channels, channels:] = self.border[:, :channels].T
        scatter.addr_(self.sums, self.sums, alpha=-1 / self.count)
        return Moments(float(self.count), (origin.double() + self.sums / self.count).cpu(), scatter.cpu())


class MomentsAccumulator:
    """Collects samples of `channels`, and target columns that are the same for all samples of an image.

    A batch is `add`ed, then `close`d: the targets are known when the forward pass has ended. Samples are measured from one
    point, the mean of the first of them, multiplied in their own precision and summed in float64 (in float32 where `compact`);
    `finish` moves the moments from that point to each shard's mean; their scatter is symmetric up to rounding.
    """

    def __init__(self, channels: int, targets: int, shards: int, compact: bool = False, block_bytes: int = BLOCK_BYTES):
        self.channels, self.targets = channels, targets
        self._products = [_Products(compact) for _ in range(shards)]
        self._origin = self._target_origin = torch.empty(0)
        self._block = max(256, min(BLOCK, block_bytes // (4 * channels)))
        self._samples: list[Tensor] = []
        self._columns: list[Tensor] = []
        self._spans: list[ShardSlices] = []
        self._waiting = self._samples_per_image = 0

    def add(self, samples: Float[Tensor, "images each channels"], spans: ShardSlices, lent: bool = False) -> None:
        """Take over the samples of a batch; `lent` memory is about to change and is copied, or used up at once."""
        images, self._samples_per_image, _ = samples.shape
        samples = samples if samples.dtype == torch.float64 else samples.float()
        if not len(self._origin):
            self._origin = approximate_mean(samples.flatten(0, 1))
        if not self.targets and images * self._samples_per_image >= self._block:
            for shard, rows in spans:
                centred = samples[rows].flatten(0, 1) - self._origin
                self._products[shard].add(centred, centred[:, :0])
            return
        self._samples.append(samples.clone() if lent else samples)
        self._spans.append(spans)
        self._waiting += images * self._samples_per_image

    def close(self, columns: Float[Tensor, "images targets"]) -> None:
        """End a batch with its targets; a full block is multiplied."""
        if len(self._columns) < len(self._samples):
            if not len(self._target_origin):
                self._target_origin = approximate_mean(columns.to(self._samples[0].dtype))
            self._columns.append(columns)
        if self._waiting >= self._block:
            self.flush()

    def flush(self) -> None:
        """Multiply and add what is waiting."""
        by_shard: dict[int, list[tuple[int, slice]]] = {}
        for batch, spans in enumerate(self._spans):
            for shard, rows in spans:
                by_shard.setdefault(shard, []).append((batch, rows))
        for shard, parts in by_shard.items():
            centred = torch.cat([self._samples[batch][rows] for batch, rows in parts]).sub_(self._origin).flatten(0, 1)
            targets = centred[:, :0]
            if self.targets:
                targets = torch.cat([self._columns[batch][rows] for batch, rows in parts]).to(centred.dtype) - self._target_origin
                targets = targets.repeat_interleave(self._samples_per_image, 0)
            self._products[shard].add(centred, targets)
        self._samples, self._columns, self._spans, self._waiting = [], [], [], 0

    def finish(self) -> list[Moments]:
        """Moments of every shard, channels first, then targets; more may be added afterwards."""
        return list(self.moments())

    def moments(self, free: bool = False) -> Iterator[Moments]:
        """Moments of one shard after the other; with `free` its sums are given up, and nothing may be added afterwards."""
        self.flush()
        origin = torch.cat([self._origin, self._target_origin]) if self.targets else self._origin
        for shard, products in enumerate(self._products):
            yield products.moments(origin) if products.count else Moments.zero(self.channels + self.targets)
            if free:
                self._products[shard] = _Products(products.compact)


@dataclass(frozen=True)
class Variance:
    """Count, mean and centred sum of squares of every entry over some images; `+` merges disjoint image sets.

    Examples
    --------
    >>> variance = Variance.of(torch.tensor([[0.0, 1.0], [2.0, 1.0]])) + Variance.of(torch.tensor([[4.0, 1.0]]))
    >>> variance.mean.tolist(), round(variance.total, 3)
    ([2.0, 1.0], 2.667)
    """

    count: int
    """number of images"""
    mean: Float[Tensor, "..."]
    """mean of each entry, float64"""
    scatter: Float[Tensor, "..."]
    """sum over images of the squared distance from the mean, entry by entry, float64"""

    @classmethod
    def of(cls, batch: Float[Tensor, "images ..."]) -> "Variance":
        """The variance within one batch, images first."""
        values = batch.detach().double()
        mean = values.mean(0)
        return cls(len(batch), mean, (values - mean).square().sum(0))

    def __add__(self, other: "Variance") -> "Variance":
        """The variance over the images of both (Chan, Golub, LeVeque 1983)."""
        if self.mean.shape != other.mean.shape:
            raise ShapeError(f"cannot add variances of shapes {tuple(self.mean.shape)} and {tuple(other.mean.shape)}")
        count = self.count + other.count
        gap = other.mean - self.mean
        scatter = self.scatter + other.scatter + gap.square() * (self.count * other.count / count)
        return Variance(count, self.mean + gap * (other.count / count), scatter)

    @property
    def each(self) -> Float[Tensor, "..."]:
        """Variance of each entry (divided by the count)."""
        return self.scatter / self.count

    @property
    def total(self) -> float:
        """Sum of the variances of all entries: the trace of the covariance, mean squared distance from the mean."""
        return float(torch.sum(self.each))


@dataclass(frozen=True, repr=False)
class NormalEquations:
    """Counts, means and scatters of inputs x and targets t, separately for each group of a layer; two of them add.

    Examples
    --------
    >>> x = torch.tensor([[[0.0], [1.0], [2.0]]])
    >>> equations = NormalEquations.of(x[:, :2], 3 * x[:, :2] + 1) + NormalEquations.of(x[:, 2:], 3 * x[:, 2:] + 1)
    >>> equations
    NormalEquations(3 samples, 1 group of 1 inputs and 1 outputs)
    >>> (weights,) = equations.ridge(torch.zeros(1, 1, 1).double(), (1e-12,))
    >>> round(float(weights), 3), round(float(equations.intercept(weights)), 3), round(float(equations.error(weights)), 3)
    (3.0, 1.0, 0.0)
    """

    count: int
    """number of samples"""
    x_mean: Float[Tensor, "groups inputs"]
    """mean input, float64"""
    t_mean: Float[Tensor, "groups outputs"]
    """mean target, float64"""
    xx: Float[Tensor, "groups inputs inputs"]
    """centred scatter of the inputs, float64"""
    xt: Float[Tensor, "groups inputs outputs"]
    """centred cross scatter, float64"""
    tt: Float[Tensor, "groups outputs"]
    """centred squares of the targets, float64"""

    @property
    def covariance(self) -> Float[Tensor, "groups inputs inputs"]:
        """Scatter of the inputs divided by the count (maximum likelihood)."""
        return self.xx / self.count

    @classmethod
    def of(cls, x: Float[Tensor, "groups samples inputs"], t: Float[Tensor, "groups samples outputs"]) -> "NormalEquations":
        """Statistics of one batch: centered, multiplied in the samples' precision, kept in float64.

        Parameters
        ----------
        x
            Inputs of the regression.
        t
            Its targets, for the same samples.

        Returns
        -------
        NormalEquations
            The sums of these samples.
        """
        x_mean, t_mean = x.mean(1, keepdim=True), t.mean(1, keepdim=True)
        x, t = x - x_mean, t - t_mean
        xx, xt = x.transpose(1, 2) @ x, x.transpose(1, 2) @ t
        return cls(x.shape[1], x_mean[:, 0].double(), t_mean[:, 0].double(), xx.double(), xt.double(), t.square().sum(1).double())

    def __repr__(self) -> str:
        """The sizes."""
        groups, inputs, outputs = self.xt.shape
        return f"NormalEquations({self.count:,} samples, {groups} group{'s' * (groups > 1)} of {inputs} inputs and {outputs} outputs)"

    def __add__(self, other: "NormalEquations") -> "NormalEquations":
        """Statistics of the union of two disjoint sample sets (Chan, Golub, LeVeque 1983)."""
        count = self.count + other.count
        dx, dt = other.x_mean - self.x_mean, other.t_mean - self.t_mean
        factor = self.count * other.count / count
        return NormalEquations(
            count,
            self.x_mean + dx * (other.count / count),
            self.t_mean + dt * (other.count / count),
            self.xx + other.xx + factor * dx[:, :, None] * dx[:, None, :],
            self.xt + other.xt + factor * dx[:, :, None] * dt[:, None, :],
            self.tt + other.tt + factor * dt.square(),
        )

    def about_zero(self) -> "NormalEquations":
        """Statistics of the same samples about zero instead of the mean, for layers without an intercept."""
        zero = torch.zeros_like
        return NormalEquations(
            self.count,
            zero(self.x_mean),
            zero(self.t_mean),
            self.xx + self.count * self.x_mean[:, :, None] * self.x_mean[:, None, :],
            self.xt + self.count * self.x_mean[:, :, None] * self.t_mean[:, None, :],
            self.tt + self.count * self.t_mean.square(),
        )

    def error(self, weights: Float[Tensor, "groups outputs inputs"]) -> Float[Tensor, "groups outputs"]:
        """Mean squared error of each output, of weights · x with the best intercept."""
        cross = (weights * self.xt.transpose(1, 2)).sum(2)
        return (self.tt - 2 * cross + ((weights @ self.xx) * weights).sum(2)).clamp(min=0) / self.count

    def ridge(
        self, prior: Float[Tensor, "groups outputs inputs"], shares: Sequence[float]
    ) -> Iterator[Float[Tensor, "groups outputs inputs"]]:
        """The weights that minimize the squared error plus λ |weights − prior|², for each penalty.

            W = W₀ + (T − W₀X) X' (XX' + λI)⁻¹        λ = share × mean diagonal of XX'

        Parameters
        ----------
        prior
            Weights W₀ toward which the fit is shrunk.
        shares
            Penalties, as fractions of the mean scatter of the inputs.

        Yields
        ------
        Tensor
            Fitted weights, as `prior` for one share.

        References
        ----------
        Hoerl & Kennard 1970, shrunk toward a prior instead of zero.
        """
        level = self.xx.diagonal(dim1=1, dim2=2).mean(1)
        gap = self.xt - self.xx @ prior.transpose(1, 2)
        for share in shares:
            load = torch.where(level > 0, share * level, 1.0)  # constant inputs: keep the prior
            inner = self.xx.clone()
            inner.diagonal(dim1=1, dim2=2).add_(load[:, None])
            yield prior + torch.cholesky_solve(gap, torch.linalg.cholesky(inner)).transpose(1, 2)

    def intercept(self, weights: Float[Tensor, "groups outputs inputs"]) -> Float[Tensor, "groups outputs"]:
        """The intercept of each output that minimizes the squared error of weights · x."""
        return self.t_mean - (weights @ self.x_mean[:, :, None])[:, :, 0]

    def output_moments(self, weights: Float[Tensor, "groups outputs inputs"]) -> tuple[Tensor, Tensor]:
        """Mean and variance of weights · x, each (groups, outputs)."""
        variance = ((weights @ self.xx) * weights).sum(2) / self.count
        return (weights @ self.x_mean[:, :, None])[:, :, 0], variance.clamp(min=0)

    def match_target_variance(
        self, weights: Float[Tensor, "groups outputs inputs"], max_factor: float
    ) -> Float[Tensor, "groups outputs inputs"]:
        """The weights, rescaled so that the variance of each output equals its target's.

        Re-estimating a BatchNorm has the same effect on the weights before it (Li et al. 2018, AdaBN). Without it, ridge shrinkage
        lowers the variance at every layer of a deep network.

        Parameters
        ----------
        weights
            Weights from the inputs to the outputs.
        max_factor
            Largest factor; smaller ones are not limited.

        Returns
        -------
        Tensor
            As `weights`; unchanged where the output has no variance.
        """
        variance = self.output_moments(weights)[1]
        factor = (self.tt / self.count / variance).sqrt().clamp(max=max_factor)
        return weights * torch.where(variance > 0, factor, 1.0)[:, :, None]

    def float32(self) -> "NormalEquations":
        """The same statistics in float32, for trial fits."""
        return NormalEquations(self.count, *(part.float() for part in (self.x_mean, self.t_mean, self.xx, self.xt, self.tt)))


def cross_validated_error(
    halves: tuple[NormalEquations, NormalEquations], prior: Float[Tensor, "groups outputs inputs"], shares: Sequence[float]
) -> Float[Tensor, "shares"]:
    """Two-fold cross-validated mean squared error of ridge fits toward a prior, for each penalty.

    Solved in float32, which is enough to choose a penalty.

    Parameters
    ----------
    halves
        Normal equations of two disjoint halves of the samples.
    prior
        Weights toward which the fits are shrunk.
    shares
        Penalties, as fractions of the mean scatter of the inputs of one half.

    Returns
    -------
    Tensor
        float64 (shares,): mean over outputs and over the two halves.

    Examples
    --------
    >>> x = torch.tensor([[[0.0], [1.0], [2.0], [3.0]]])
    >>> halves = NormalEquations.of(x[:, ::2], 3 * x[:, ::2]), NormalEquations.of(x[:, 1::2], 3 * x[:, 1::2])
    >>> cross_validated_error(halves, torch.zeros(1, 1, 1), (1e-9, 1.0)).round(decimals=3).tolist()
    [0.0, 2.25]

    References
    ----------
    Stone 1974 (cross-validation).
    """
    first, second = (half.float32() for half in halves)
    prior = prior.float()
    errors = [
        [validation.error(fit).mean() for fit in training.ridge(prior, shares)]
        for training, validation in ((first, second), (second, first))
    ]
    return torch.tensor(errors, dtype=torch.float64).mean(0)
