"""The linear systems of the interior point under constraints: blocks that meet in the loss and in the rows.

K = blockdiag(H_j) + F'T'diag(h)T F with T = (training samples; A), h = (curvature of the loss; mu / c). By Woodbury
one matrix of the size of training samples and rows is factorised, however many patterns there are.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from convexnn.constrained.program import Rows
from convexnn.solvers.blocks import BlockMap, Image
from convexnn.solvers.cones import Scaling
from convexnn.solvers.newton import Response, block_curvature, cholesky, pattern_gram


@dataclass(frozen=True)
class Heights:
    """T: the outputs at all points to those at the samples, followed by A f.

    ``soft`` is one for each, and zero for the last rows, those that hold as equalities.
    """

    rows: Rows
    n: int
    soft: Float[Tensor, " r"]

    def forward(self, F: Float[Tensor, "N c"]) -> Float[Tensor, "r c"]:
        """T F."""
        return torch.cat([F[: self.n], self.rows.A @ F])

    def adjoint(self, R: Float[Tensor, "r c"]) -> Float[Tensor, "N c"]:
        """T'R."""
        out = self.rows.A.T @ R[self.n :]
        out[: self.n] += R[: self.n]
        return out

    def gram(self, lower: Float[Tensor, "N N"]) -> Float[Tensor, "r r"]:
        """T G T' of a symmetric matrix, given by its lower triangle."""
        return self.forward(self.forward(torch.tril(lower) + torch.tril(lower, -1).T).T)


@dataclass(frozen=True)
class RowSystem:
    """K at one iterate, factorised; ``root`` holds the square roots of h, and ones where h is infinite: equalities."""

    maps: BlockMap
    heights: Heights
    scaling: Scaling
    weights: Float[Tensor, "B m"]  # multipliers over slacks of the cones
    root: Float[Tensor, "r 1"]
    H: Float[Tensor, "B d d"]
    factor: Float[Tensor, "B d d"]
    samples: Float[Tensor, "r r"]  # Cholesky factor of diag(soft) + R T G T'R
    with_bias: bool

    @classmethod
    def of(
        cls,
        maps: BlockMap,
        heights: Heights,
        scaling: Scaling,
        weights: Float[Tensor, "B m"],
        root: Float[Tensor, "r 1"],
        *,
        with_bias: bool,
    ) -> "RowSystem":
        """Factorise."""
        H = block_curvature(maps, scaling, weights)
        factor = cholesky(H)
        samples = heights.gram(pattern_gram(maps, factor)) * root * root.T
        samples.diagonal().add_(heights.soft)
        return cls(maps, heights, scaling, weights, root, H, factor, cholesky(samples[None])[0], with_bias)

    def solve(self, whole: Response, refinements: int) -> tuple[Response, Image]:
        """du, q and db for these right-hand sides, and what du does at all points."""
        at = self._solve_once(whole)
        image = self.maps.image(at.du)
        for _ in range(refinements):
            at = at.plus(self._solve_once(self._residual(whole, at, image)))
            image = self.maps.image(at.du)
        return at, image

    def ones(self) -> Float[Tensor, "r 1"]:
        """R T 1: what an output bias does."""
        return self.root * torch.cat([self.root.new_ones(self.heights.n), self.heights.rows.totals])[:, None]

    def _solve_once(self, right: Response) -> Response:
        a = self._blocks(right.du)
        b = self.root * self.heights.forward(self.maps.forward(a)) + right.q
        q, db = self._samples(b), torch.zeros_like(right.db)
        if self.with_bias:
            E = self.ones()
            SE = self._samples(E)
            db = ((right.db - (SE * b).sum()) / (E * SE).sum()).reshape(1)
            q = q + db * SE
        return Response(a - self._blocks(self._spread(q)), q, db)

    def _spread(self, q: Tensor) -> Tensor:
        return self.maps.adjoint(self.heights.adjoint(self.root * q))

    def _blocks(self, right: Tensor) -> Tensor:
        return torch.cholesky_solve(right[:, :, None], self.factor)[:, :, 0]

    def _samples(self, b: Tensor) -> Tensor:
        return torch.cholesky_solve(b, self.samples)

    def _residual(self, right: Response, at: Response, image: Image) -> Response:
        r = right.du - (self.H @ at.du[:, :, None])[:, :, 0] - self._spread(at.q)
        short = right.q + self.root * self.heights.forward(image.F + at.db) - self.heights.soft[:, None] * at.q
        total = (self.ones() * at.q).sum().reshape(1)
        return Response(r, short, right.db - total if self.with_bias else torch.zeros_like(right.db))
