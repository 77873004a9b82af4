"""The least weight decay at which no neuron pays for itself: the constant network is optimal from there on."""

import torch

from convexnn.ascent import ColumnPairs
from convexnn.duality import judge
from convexnn.neurons import no_neurons
from convexnn.operators import ConeMap
from convexnn.problem import Problem
from convexnn.programs import AbstractProgram
from convexnn.projection import ColumnProducts, price
from convexnn.solvers.sliding import confirmation_effort

_ACCURACY = 1e-9


def null_level(problem: Problem, seed: int = 0) -> float:
    """max over unit neurons u of ||V'(Xu)_+||, V = -grad L at the best constant; the maximum is searched locally.

    The weight decay of ``problem`` does not matter. For the hinge loss, whose gradient at the constant is not unique,
    the level can be too high.
    """
    constant = no_neurons(problem.n_inputs, problem.constant())
    V = problem.dual_point(constant(problem.X))
    found = judge(
        problem,
        V,
        constant,
        effort=confirmation_effort(problem),
        generator=torch.Generator().manual_seed(seed),
        pairs=ColumnPairs.fit(problem.X),
    )
    return found.candidates.best()


def program_null_level(program: AbstractProgram) -> float:
    """The same of a program: the longest projection of a correlation s X'D V on the cone of its pattern, from above.

    Of a gated program, which has no cones, the longest correlation.
    """
    problem, cone = program.problem, program.cone
    V = problem.dual_point(torch.zeros_like(problem.loss.targets) + problem.constant())
    C = program.correlations(V)
    longest = float(program.penalty.dual_norms(C).max())
    if cone is None or longest == 0.0:
        return longest
    flat = C.reshape(-1, C.shape[-1])
    copies = len(flat) // len(program.patterns)
    signs, gates = cone.signs.repeat(copies, 1), program.patterns.gates.repeat(copies, 1)
    level, products = 0.0, ColumnProducts.of(cone.X)
    order = torch.argsort(flat.norm(dim=1), descending=True)
    for part in order.split(256):
        if float(flat[part[0]].norm()) <= level:
            break
        limit = max(level, 1e-12 * longest)
        prices = price(ConeMap(cone.X, signs[part]), products, flat[part], gates[part], limit, slack=_ACCURACY)
        level = max(level, float(torch.where(prices.lower > level, prices.upper, 0.0).max()))
    return level
