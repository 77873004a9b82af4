"""ADMM's step in the weights by randomised block coordinate descent: the baseline of Bai, Gautam & Sojoudi (2022).

The step minimises ||U - A||^2 + g^2 ||G U - B||^2 + f^2 ||F U + b - c||^2. The source's second algorithm
visits random blocks instead of factorising a matrix of all weights. Here each visit minimises over its
block, where the source takes a gradient step, and a step starts where the last one ended. It needs no
n x n matrix; the closed form of :mod:`convexnn.solvers.admm` costs about four products of the same size.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from convexnn.programs import AbstractProgram, ConvexPoint

_SWEEPS = 2  # as many visits as there are blocks, twice, in each step


@dataclass(frozen=True)
class BlockDescent:
    """The curvature of each block, inverted once: I + g^2 X'X + f^2 X'D_p X."""

    program: AbstractProgram
    shared: Float[Tensor, "d d"]  # I + g^2 X'X
    inverses: Float[Tensor, "P d d"]
    cone_weight: float
    fit_weight: float

    @classmethod
    def of(cls, program: AbstractProgram, cone_weight: float, fit_weight: float) -> "BlockDescent":
        """For the patterns of a program."""
        X = program.problem.X
        shared = torch.eye(X.shape[1]).to(X) + cone_weight**2 * (X.T @ X)
        curvatures = torch.stack([shared + fit_weight**2 * (X.T @ (row[:, None] * X)) for row in program.gated.mask])
        return cls(program, shared, torch.linalg.inv(curvatures), cone_weight, fit_weight)

    def descend(
        self,
        A: Float[Tensor, "S K P d"],
        B: Float[Tensor, "S K P m"],
        c: Float[Tensor, "n K"],
        *,
        start: ConvexPoint,
        seed: int,
    ) -> ConvexPoint:
        """Random visits from ``start``; they only lower what the step minimises."""
        program = self.program
        right = A if program.cone is None else A + self.cone_weight**2 * program.cone.adjoint(B)
        U, b, short = start.U.clone(), start.bias, (program.output(start) - c).T.contiguous()  # K n
        n_blocks, generator = U.shape[0] * U.shape[2], torch.Generator().manual_seed(seed)
        for _ in range(_SWEEPS):
            for block in torch.randint(n_blocks, (n_blocks,), generator=generator).tolist():
                self._visit(U, right, short, divmod(block, U.shape[2]))
            if program.problem.output_bias:
                shift = -short.mean(1)
                b, short = b + shift, short + shift[:, None]
        return ConvexPoint(U, b)

    def _visit(
        self, U: Float[Tensor, "S K P d"], right: Float[Tensor, "S K P d"], short: Tensor, at: tuple[int, int]
    ) -> None:
        """Minimise over the block of one sign and pattern, in place; ``short`` is F U + b - c, K x n."""
        (s, p), X = at, self.program.problem.X
        masked, old = self.program.signs[s] * self.program.gated.mask[p], U[s, :, p]
        gradient = old @ self.shared - right[s, :, p] + self.fit_weight**2 * ((masked * short) @ X)
        step = -gradient @ self.inverses[p]
        short += masked * (step @ X.T)
        U[s, :, p] += step
