"""The linear systems of the interior point: small blocks that meet in the loss.

K = blockdiag(H_j) + A'L''A. With L'' = R R' (Woodbury)
K^-1 = H^-1 - H^-1 A'R (I + R'A H^-1 A'R)^-1 R'A H^-1: one matrix of the size of the samples.
Patterns that add next to nothing to it are left out of it, and it preconditions conjugate gradients.
For many samples it is built and factorised in single precision, which conjugate gradients make up for
in a few iterations, until the barrier has made it too ill conditioned for that.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from scipy.linalg.blas import dsyrk, ssyrk
from torch import Tensor

from convexnn.solvers.blocks import AbstractBlockMap, Image
from convexnn.solvers.cones import Scaling

_NEGLIGIBLE = 0.1  # trace, relative to the identity, that patterns may have in all to be left out
_COLUMNS = 2048  # of the factor that are worked on together
_SINGLE_FROM = 400  # samples; of fewer the factor costs little
_SINGLE_UP_TO = 1e5  # largest diagonal entry of R'A H^-1 A'R of which single precision leaves a preconditioner
_CG_STEPS = 60
_CG_ACCURACY = 1e-11


@dataclass(frozen=True)
class Linearisation:
    """The Hessian of the loss, L'' = R R': the diagonal of R, or K x K for each sample."""

    root: Float[Tensor, "n K K"] | Float[Tensor, "n K"]

    @property
    def diagonal(self) -> bool:
        """Whether outputs do not meet in the Hessian."""
        return self.root.ndim == 2

    def right(self, Q: Float[Tensor, "n K"]) -> Float[Tensor, "n K"]:
        """R q."""
        return self.root * Q if self.diagonal else torch.einsum("nka,na->nk", self.root, Q)

    def left(self, F: Float[Tensor, "n K"]) -> Float[Tensor, "n K"]:
        """R'f."""
        return self.root * F if self.diagonal else torch.einsum("nka,nk->na", self.root, F)


@dataclass(frozen=True)
class SampleMatrix:
    """Cholesky factors of I + R'A H^-1 A'R: one for each output, or one for all where outputs meet in the loss.

    In single precision they only precondition.
    """

    factors: tuple[Float[Tensor, "N N"], ...]

    def solve(self, Q: Float[Tensor, "n K"]) -> Float[Tensor, "n K"]:
        """The inverse, applied to a point of the samples' space."""
        return self._solve(Q.to(self.factors[0].dtype)).to(Q.dtype)

    @property
    def exact(self) -> bool:
        """Whether the factors are in double precision."""
        return self.factors[0].dtype is torch.float64

    def _solve(self, Q: Float[Tensor, "n K"]) -> Float[Tensor, "n K"]:
        if len(self.factors) == Q.shape[1]:
            columns = [_cholesky_solve(factor, Q[:, k]) for k, factor in enumerate(self.factors)]
            return torch.stack(columns, 1)
        return _cholesky_solve(self.factors[0], Q.reshape(-1)).reshape(Q.shape)


def _cholesky_solve(factor: Tensor, q: Tensor) -> Tensor:
    return torch.cholesky_solve(q[:, None], factor)[:, 0]


@dataclass(frozen=True)
class NewtonSystem:
    """K at one iterate, factorised."""

    maps: AbstractBlockMap
    linear: Linearisation
    scaling: Scaling
    weights: Float[Tensor, "B m"]  # multipliers over slacks
    factor: Float[Tensor, "B d d"]  # Cholesky factors of H_j
    samples: SampleMatrix
    exact: bool  # no pattern was left out, no digit either
    with_bias: bool

    @classmethod
    def of(
        cls,
        maps: AbstractBlockMap,
        linear: Linearisation,
        scaling: Scaling,
        weights: Float[Tensor, "B m"],
        with_bias: bool,
    ) -> "NewtonSystem":
        """Factorise."""
        factor = cholesky(block_curvature(maps, scaling, weights))
        inverse = torch.cholesky_inverse(factor)
        n_pairs = int(maps.pairs.max()) + 1
        M = inverse.new_zeros((n_pairs, *inverse.shape[1:])).index_add_(0, maps.pairs, inverse)
        first = _first_of_pairs(maps, n_pairs)
        keep = _weighty(maps, linear, M)
        samples = _sample_matrix(maps, linear, M[keep], first[keep])
        return cls(maps, linear, scaling, weights, factor, samples, samples.exact and bool(keep.all()), with_bias)

    def solve(
        self, right: Float[Tensor, "B d"], bias: Float[Tensor, " K"], refinements: int
    ) -> tuple["Response", Image]:
        """du, db with K (du, db) = (right, bias), q = R'(A du + db) and what du does; without a bias db is zero.

        q is an unknown of its own, so that a huge curvature does not multiply the rounding of A du.
        """
        whole = Response(right, right.new_zeros((len(self.maps.X), self.maps.n_outputs)), bias)
        at = self._solve_once(whole)
        image = self.maps.image(at.du)
        for _ in range(refinements):
            at = at.plus(self._solve_once(self._residual(whole, at, image)))
            image = self.maps.image(at.du)
        return at, image

    def _solve_once(self, right: "Response") -> "Response":
        a = self._blocks(right.du)
        b = self.linear.left(self.maps.forward(a)) + right.q
        if not self.with_bias:
            q = self._sample_solve(b)
            return Response(a - self._blocks(self._spread(q)), q, torch.zeros_like(right.db))
        size = len(right.db)
        ones = torch.eye(size, dtype=a.dtype, device=a.device)[:, None, :].expand(-1, len(self.maps.X), -1)
        E = [self.linear.left(column) for column in ones]
        SE = [self._sample_solve(column) for column in E]
        B = torch.stack([torch.stack([(e * f).sum() for f in SE]) for e in E])
        db = _solve_small(B, right.db - torch.stack([(f * b).sum() for f in SE]))
        q = self._sample_solve(b)
        for k in range(size):
            q = q + db[k] * SE[k]
        return Response(a - self._blocks(self._spread(q)), q, db)

    def _spread(self, q: Tensor) -> Tensor:
        return self.maps.adjoint(self.linear.right(q))

    def _blocks(self, right: Tensor) -> Tensor:
        return torch.cholesky_solve(right[:, :, None], self.factor)[:, :, 0]

    def _sample_solve(self, b: Tensor) -> Tensor:
        if self.exact:
            return self.samples.solve(b)

        def apply(q: Tensor) -> Tensor:
            return q + self.linear.left(self.maps.forward(self._blocks(self._spread(q))))

        return _conjugate_gradients(apply, self.samples.solve, b)

    def _residual(self, right: "Response", at: "Response", image: Image) -> "Response":
        scaling = self.scaling
        rows = at.du.reshape(len(scaling.w0), -1)
        own = rows / scaling.eta**2 - scaling.pull * scaling.w1 * (scaling.w1 * rows).sum(1, keepdim=True)
        V = self.linear.right(at.q)
        r = right.du - self.maps.pull(V, self.weights * image.slack) - own.reshape(right.du.shape)
        short = right.q + self.linear.left(image.F + at.db) - at.q
        return Response(r, short, right.db - V.sum(0) if self.with_bias else right.db)


@dataclass(frozen=True)
class Response:
    """A solution or a right-hand side: blocks, rows (q = R'dF; samples, or those of constraints), output bias."""

    du: Float[Tensor, "B d"]
    q: Float[Tensor, "r K"]
    db: Float[Tensor, " K"]

    def plus(self, other: "Response") -> "Response":
        """The sum."""
        return Response(self.du + other.du, self.q + other.q, self.db + other.db)


def block_curvature(maps: AbstractBlockMap, scaling: Scaling, weights: Tensor) -> Float[Tensor, "B d d"]:
    """H_j: cone rows, and the norm after its bound was eliminated."""
    H = maps.cone_gram(weights)
    B, d = maps.shape
    w1, pull, inverse = scaling.w1, scaling.pull, 1 / scaling.eta**2
    if len(w1) == B:
        H -= pull[:, :, None] * (w1[:, :, None] * w1[:, None, :])
        H.diagonal(dim1=1, dim2=2).add_(inverse)
    else:  # one cone for each entry: I / eta^2 - pull w1^2 = pull / 2 there, without cancellation
        H.diagonal(dim1=1, dim2=2).add_(0.5 * pull.reshape(B, d))
    return H


def cholesky(H: Float[Tensor, "B d d"]) -> Float[Tensor, "B d d"]:
    """Cholesky factors; matrices that are singular to rounding get the ridge that they need."""
    factor, info = torch.linalg.cholesky_ex(H)
    ridge = 1e-14
    while bool((info > 0).any()) and ridge < 1.0:
        bad = info > 0
        mean = H[bad].diagonal(dim1=1, dim2=2).abs().mean(1)
        H[bad] += ridge * mean[:, None, None] * torch.eye(H.shape[1], dtype=H.dtype, device=H.device)
        factor, info = torch.linalg.cholesky_ex(H)
        ridge *= 10
    return factor


def _weighty(maps: AbstractBlockMap, linear: Linearisation, M: Float[Tensor, "Q d d"]) -> Tensor:
    """All pairs but those whose traces come to a tenth of the identity's in all."""
    size = float(torch.linalg.matrix_norm(maps.X, 2)) ** 2 * float((linear.root**2).max())
    trace = M.diagonal(dim1=1, dim2=2).sum(1) * size
    order = torch.argsort(trace)
    keep = torch.zeros(len(M), dtype=torch.bool, device=M.device)
    keep[order[torch.cumsum(trace[order], 0) > _NEGLIGIBLE]] = True
    return keep


def _sample_matrix(maps: AbstractBlockMap, linear: Linearisation, M: Tensor, members: Tensor) -> SampleMatrix:
    """``members`` is one block of each pair: it knows the pattern and the output."""
    factor = cholesky(M)
    masks, outputs = maps.masks[members], maps.outputs[members]
    diagonal = linear.diagonal
    if diagonal and len(maps.X) >= _SINGLE_FROM:
        samples = _single_precision(maps, linear, (masks, outputs), factor)
        if samples is not None:
            return samples
    grams = []
    for k in range(maps.n_outputs):
        mine = outputs == k
        rows = linear.root[:, k] if diagonal else torch.ones_like(maps.X[:, 0])
        grams.append(_gram(maps.X, masks[mine] * rows, factor[mine]))
    if diagonal:
        return SampleMatrix(tuple(_factorise(gram) for gram in grams))
    root, n = linear.root, len(maps.X)
    T = torch.stack([torch.tril(gram) + torch.tril(gram, -1).T for gram in grams])
    coupled = torch.einsum("ika,kij,jkb->iajb", root, T, root).reshape(n * root.shape[2], -1)
    return SampleMatrix((_factorise(coupled),))


def _first_of_pairs(maps: AbstractBlockMap, n_pairs: int) -> Int[Tensor, " Q"]:
    """One block of each pair: it knows the pattern and the output."""
    first = torch.zeros(n_pairs, dtype=torch.long, device=maps.masks.device)
    first[maps.pairs] = torch.arange(len(maps.pairs), device=first.device)
    return first


def pattern_gram(maps: AbstractBlockMap, factor: Float[Tensor, "B d d"]) -> Float[Tensor, "N N"]:
    """Lower triangle of A H^-1 A' over all points, one output, from the Cholesky factors of the H_j."""
    inverse = torch.cholesky_inverse(factor)
    n_pairs = int(maps.pairs.max()) + 1
    M = inverse.new_zeros((n_pairs, *inverse.shape[1:])).index_add_(0, maps.pairs, inverse)
    return _gram(maps.X, maps.masks[_first_of_pairs(maps, n_pairs)], cholesky(M))


def _single_precision(
    maps: AbstractBlockMap, linear: Linearisation, members: tuple[Tensor, Tensor], factor: Tensor
) -> SampleMatrix | None:
    """The factors in single precision; None where rounding would leave too little of them."""
    (masks, outputs), factors = members, []
    X, small = maps.X.float(), factor.float()
    for k in range(maps.n_outputs):
        mine = outputs == k
        gram = _gram(X, (masks[mine] * linear.root[:, k]).float(), small[mine])
        size = float(gram.diagonal().max())
        gram.diagonal().add_(1.0)
        found, info = torch.linalg.cholesky_ex(gram)
        if not size <= _SINGLE_UP_TO or int(info) > 0:
            return None
        factors.append(found)
    return SampleMatrix(tuple(factors))


def _gram(X: Tensor, masks: Tensor, factor: Tensor) -> Float[Tensor, "n n"]:
    """Lower triangle of sum_p A_p L_p L_p'A_p', A_p = D_p X, or (D_p1 X, D_p2 X, ...) where blocks have parts."""
    n, e = len(X), factor.shape[1]
    out = X.new_zeros((n, n))
    for start in range(0, len(masks), max(1, _COLUMNS // e)):
        part = slice(start, start + max(1, _COLUMNS // e))
        A = _masked(X, masks[part], factor[part]).reshape(n, -1)
        if X.device.type == "cpu":
            # Row-major A is the transpose of what BLAS sees; the upper triangle there is the lower one here.
            syrk = dsyrk if X.dtype is torch.float64 else ssyrk
            syrk(1.0, A.numpy().T, beta=1.0, c=out.numpy().T, trans=1, lower=0, overwrite_c=1)
        else:
            out += A @ A.T
    return out


def _masked(X: Tensor, masks: Tensor, factor: Tensor) -> Float[Tensor, "n p e"]:
    """A_p L_p for each block."""
    (n, d), (p, e, _) = X.shape, factor.shape
    if masks.ndim == 2:
        A = (X @ factor.transpose(0, 1).reshape(d, -1)).reshape(n, p, d)
        return A.mul_(masks.T[:, :, None])
    A = (X @ factor.reshape(p, -1, d, e).permute(2, 0, 1, 3).reshape(d, -1)).reshape(n, p, -1, e)
    return A.mul_(masks.permute(2, 0, 1)[:, :, :, None]).sum(2)


def _factorise(gram: Tensor) -> Tensor:
    gram.diagonal().add_(1.0)
    return cholesky(gram[None])[0]


def _conjugate_gradients(apply, precondition, b: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
    q, r = torch.zeros_like(b), b
    y = precondition(r)
    p, product, size = y, float((r * y).sum()), float(b.norm())
    for _ in range(_CG_STEPS):
        if float(r.norm()) <= _CG_ACCURACY * size:
            break
        Ap = apply(p)
        curvature = float((p * Ap).sum())
        if not curvature > 0:  # rounding has taken over
            break
        a = product / curvature
        q, r = q + a * p, r - a * Ap
        y = precondition(r)
        new = float((r * y).sum())
        if not new > 0:
            break
        p, product = y + new / product * p, new
    return q


def _solve_small(B: Tensor, right: Tensor) -> Tensor:
    """Softmax has no curvature along a shift of all outputs: a ridge keeps that direction still."""
    ridge = 1e-12 * torch.trace(B) + torch.finfo(B.dtype).tiny
    return torch.linalg.solve(B + ridge * torch.eye(len(B), dtype=B.dtype, device=B.device), right)
