"""One input: can anything in its region change the label?"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, SupportsFloat, SupportsIndex

import numpy as np
import torch
from torch import Tensor, nn

from certify.errors import InvalidInputError, InvalidTypeError
from certify.inputs import as_inputs, as_label
from certify.ir.module import unmerged_graph
from certify.ir.ops import Shape
from certify.proof.check.network import Network
from certify.regions import LpBall
from certify.regions.spatial import Deformation, VectorField
from certify.regions.spatial.vector_field import image_of
from certify.search import Deadline, Outcome, Plan, Problem
from certify.search.climb import climb
from certify.setup import Question, plan_of
from certify.threads import threads_for
from certify.verdict import Status, Verdict

# Weights that go into a proof file; of larger networks it has the digest only.
_EMBEDDED = 2**14


def verify(
    network: nn.Module,
    x: Any,
    *,
    label: SupportsIndex,
    eps: SupportsFloat | None = None,
    norm: str = "linf",
    domain: Any = None,
    method: str | Plan = "auto",
    timeout: SupportsFloat | None = None,
    proof: str | os.PathLike[str] | None = None,
    region: VectorField | Deformation | None = None,
) -> Verdict:
    """Prove that no input within `eps` of `x` loses the label, or find one that does.

    With `region=VectorField(x, delta, ...)` the inputs are what vector fields make of the image x.

    Args:
        network: a torch module that `graph_from_torch` can read, in eval mode.
        x: one input (array, tensor, data frame row), without or with a batch axis of 1.
        label: the class to keep; for a network with one output 1 is a positive output, 0 the rest.
        eps: radius of the ball, in the units of x.
        norm: "linf", "l2" or "l1".
        domain: a pair (lower, upper) of numbers or arrays that valid inputs obey, such as (0, 1).
        method: "auto" (attack, then intervals, CROWN, alpha-CROWN and at most a minute of complete search, until
            the answer is known), "complete" (the same with no limit but the timeout), "ibp", "crown-ibp", "crown",
            "alpha-crown", "deeppoly-0", "deeppoly-1", "lp", "multi-neuron", "lipschitz", "sdp-crown-ball",
            "sdp-crown" or "sdp" (attack, then this method),
            "milp" (attack, bounds, then mixed-integer programs of what they leave open, and the complete search,
            which proves what the solver claims), or a `Plan`.
        timeout: seconds; looked at between layers and attack steps, one of which is always finished.
        proof: a file to write, where the answer is VERIFIED, with a proof that `certify check` accepts in exact
            arithmetic; the time to find it comes on top. Packed unless its name ends in .json.
        region: in the place of a ball, vector fields that deform the image x: `VectorField(x, ...)`, or only its
            limits, `Deformation(...)`. No eps, norm or proof then.

    Returns:
        The verdict. VERIFIED: every lower bound is positive, rounding included. FALSIFIED: the counterexample
        lies in the region and the network itself, re-run on it, gives another label. `verdict.proof` is the file,
        or None where none was written: what cuts over several neurons or the complete search verified may have no
        proof of this kind.

    Raises:
        UnsupportedOp, TrainModeError: for a network that cannot be read, or, with `proof`, is no chain of layers.
        InvalidInputError, InvalidTypeError: for anything else that cannot be worked with; says what to do.
    """
    plan, deadline = plan_of(method), Deadline(_seconds(timeout))
    labels = as_label(label)
    point = _one(x)
    if region is not None:
        _check_image(x, region, proof)
    limits = region.limits if isinstance(region, VectorField) else region
    question = Question.of(network, tuple(point.shape[1:]), eps=eps, norm=norm, domain=domain, deformation=limits)
    problem = question.problem(point, labels)
    exactly = None
    if proof is not None:
        _check_place(proof)
        exactly = _exact_network(network, tuple(point.shape[1:]))
    with threads_for(problem.multiplications):
        outcome = climb(problem, plan, deadline)
    verdict = _verdict(problem, outcome, int(labels), deadline)
    if exactly is None or verdict.status is not Status.VERIFIED:
        return verdict
    return replace(verdict, proof=_proved(exactly, problem, verdict, proof))


def _check_image(x: Any, region: Any, proof: Any) -> None:
    """Whether a region of vector fields fits the image."""
    if not isinstance(region, VectorField | Deformation):
        raise InvalidTypeError(f"region is a {type(region).__name__}; expected a VectorField or its Deformation")
    if proof is not None:
        raise InvalidInputError("proof files are about balls and boxes; expected proof=None beside a region")
    image = image_of(x, "x")
    if isinstance(region, VectorField) and not torch.equal(region.image, image):
        raise InvalidInputError("x is not the image of the region; expected the same one, or a Deformation as region")


def _check_place(proof: Any) -> None:
    """Before the work that it would be lost after."""
    try:
        path = Path(proof)
    except TypeError:
        raise InvalidTypeError(f"proof is {proof!r}; expected the path of a file to write, or None") from None
    if path.is_dir() or not path.parent.is_dir():
        raise InvalidInputError(f"the proof cannot be written to {str(path)!r}: there is no such folder")


def _exact_network(module: nn.Module, shape: Shape) -> Network:
    from certify.proof.emit.chain import exact_network

    return exact_network(unmerged_graph(module, shape))


def _proved(network: Network, problem: Problem, verdict: Verdict, path: Any) -> str | None:
    """Where the proof was written, if there is one."""
    from certify.proof.emit.label import prove
    from certify.proof.emit.margins import Question as Claimed
    from certify.proof.writing import save

    embed = sum(len(row) for W, _ in network.layers for row in W.values) <= _EMBEDDED
    assert isinstance(problem.region, LpBall)
    document = prove(Claimed.of(network, problem.region.cpu(), verdict.label, embed=embed), verdict.method)
    if document is None:
        return None
    save(document, path)
    return os.fspath(path)


def _seconds(timeout: Any) -> float | None:
    if timeout is None:
        return None
    try:
        seconds = float(timeout)
    except (TypeError, ValueError):
        raise InvalidTypeError(f"timeout is {timeout!r}; expected a positive number of seconds, or None") from None
    if not seconds > 0:
        raise InvalidInputError(f"timeout is {timeout}; expected a positive number of seconds, or None")
    return seconds


def _one(x: Any) -> Tensor:
    """The input with one batch axis in front: (1, n) and (1, channels, height, width) have it already."""
    point = as_inputs(x, "x")
    return point if point.ndim in (2, 4) and len(point) == 1 else point.unsqueeze(0)


def _verdict(problem: Problem, outcome: Outcome, label: int, deadline: Deadline) -> Verdict:
    (status,), (stage,) = outcome.status, outcome.stage
    assert isinstance(status, Status)
    bounds = zip(problem.margins.rivals[0].tolist(), outcome.lower[0].tolist(), strict=True)
    shaped, flow = _counterexample(problem, outcome.witness.get(0))
    rivals = problem.margins.rivals[0].tolist()
    claims = {rivals[target]: bound for target, bound in outcome.claims.get(0, {}).items()}
    return Verdict(status, label, dict(bounds), shaped, stage, deadline.elapsed, claims, flow=flow)


def _counterexample(problem: Problem, witness: Tensor | None) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The input as the network reads it, and the vector field that made it, if one did."""
    if witness is None:
        return None, None
    point = problem.drawn(witness[None])[0].to(problem.dtype).reshape(problem.graph.input_shape).cpu().numpy()
    if problem.canvas is None:
        return point, None
    return point, witness.reshape(2, *problem.canvas.images.shape[2:]).cpu().numpy()
