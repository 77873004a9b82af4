"""Cone decomposition: a gated block as the difference of two blocks in the cone of its pattern."""

from jaxtyping import Bool, Float
from torch import Tensor

from convexnn.operators import ConeMap
from convexnn.projection import project


def decompose(
    X: Float[Tensor, "n d"],
    D: Bool[Tensor, "P n"],
    gates: Float[Tensor, "P d"],
    U: Float[Tensor, "K P d"],
) -> tuple[Float[Tensor, "K P d"], Float[Tensor, "K P d"]]:
    """v, w in {(2D_p - I) X . >= 0} with v - w = u and the least ||v||^2 + ||w||^2.

    With h = (-G u)_+ the constraints are G w >= h, and w is the projection of -u/2 on them
    (Mishkin, Sahiner & Pilanci, ICML 2022, section 4). The cone has an interior, so that this always exists.
    """
    live = X.norm(dim=1) > 0
    cone = ConeMap(X[live], 2.0 * D[:, live].to(X) - 1.0)
    h = (-cone.forward(U)).clamp(min=0.0)
    centre = gates / gates.norm(dim=1, keepdim=True)
    W = project(cone, -0.5 * U, centre, h)
    short = ((h - cone.forward(W)) / cone.forward(centre)).amax(-1).clamp(min=0.0)
    W = W + short[..., None] * centre
    return U + W, W
