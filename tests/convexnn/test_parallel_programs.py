import numpy as np
import pytest
import torch
from convexnn_cases import TARGETS, normal, seeded

from convexnn.data import read_loss
from convexnn.deep.branches import BranchCones, Branches, centred, of_weights
from convexnn.deep.judging import judge_dual, judge_primal
from convexnn.deep.parallel import ParallelPoint, ParallelProgram
from convexnn.deep.reference import solve_parallel_reference
from convexnn.deep.sampling import sample_branches
from convexnn.deep.three_layers import ParallelWeights, from_module
from convexnn.deep.working_set import shrunk, solve_parallel
from convexnn.errors import InvalidInputError, UnsupportedNetworkError
from convexnn.patterns import sample_patterns
from convexnn.problem import Problem
from convexnn.programs import ReLUProgram
from convexnn.solvers.answer import ProgramLimits
from convexnn.solvers.reference import solve_reference


def program(n=24, d=3, *, width=2, first=6, second=3, wd=0.03, loss="squared", kind=0, seed=0, bias=True, zero=False):
    X = normal(n, d, seed=seed)
    if zero:
        X[2] = 0.0
    rng = np.random.default_rng(seed)
    y = (
        (X[:, 0].clamp(min=0) + X[:, 1].abs()).numpy()
        if loss == "squared" and kind == 0
        else TARGETS[loss][kind](n, rng)
    )
    problem = Problem(X, read_loss(loss, y, n), wd, bias)
    generator = seeded(seed)
    branches = sample_branches(X, sample_patterns(X, first, generator), width, second, generator)
    return ParallelProgram(problem, centred(X, branches))


CASES = [
    {},
    {"width": 1},
    {"width": 3, "first": 3},
    {"bias": False, "zero": True},
    {"loss": "squared", "kind": 1, "first": 3},
    {"loss": "logistic", "wd": 0.01},
    {"loss": "hinge", "wd": 0.01},
    {"loss": "softmax", "first": 3, "wd": 0.01},
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_branches_lie_inside_their_cones_and_are_distinct(case):
    made = program(**case)
    X, branches = made.problem.X, made.branches
    again = of_weights(X, branches.inside, branches.sigma)
    live = X.norm(dim=1) > 0
    assert bool((again.D1 == branches.D1)[:, :, live].all())
    active = branches.D1.any(1) & live
    assert bool((again.D2 == branches.D2)[active].all())
    assert bool((made.cones.forward(made.centre) > 0).all())
    torch.testing.assert_close(made.centre.norm(dim=1), torch.ones(len(branches)).double())
    assert len(branches.joined(branches)[0]) == len(branches)


def test_hidden_neurons_in_another_order_are_the_same_branch():
    branches = program().branches
    turned = Branches(branches.D1.flip(1), branches.sigma.flip(1), branches.D2, branches.inside.flip(1))
    assert len(branches.joined(turned)[0]) == len(branches)
    other = Branches(branches.D1, -branches.sigma, branches.D2, branches.inside)
    assert len(branches.joined(other)[0]) > len(branches)


@pytest.mark.parametrize("case", CASES[:5], ids=str)
def test_maps_and_their_transposes_agree(case):
    made = program(**case)
    index = torch.arange(0, made.n_blocks, 2)
    maps, e = made.blocks(index), made.centre.shape[1]
    U, V = normal(len(index), e, seed=1), normal(*made.problem.loss.targets.shape, seed=2)
    L = normal(len(index), len(made.cones.row_sizes), seed=3)
    torch.testing.assert_close((maps.forward(U) * V).sum(), (U * maps.adjoint(V)).sum())
    torch.testing.assert_close(maps.adjoint(V), made.correlations(V)[index])
    torch.testing.assert_close((maps.cones.forward(U) * L).sum(), (U * maps.cones.adjoint(L)).sum())
    torch.testing.assert_close(maps.image(U).slack, maps.cones.forward(U))
    G = torch.stack([maps.cones.forward(torch.eye(e).double()[i].expand_as(U)) for i in range(e)], 2)
    w = L.abs()
    torch.testing.assert_close(maps.cone_gram(w), G.mT @ (w[:, :, None] * G))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_inside_the_cones_the_program_is_the_network(case):
    made = program(**case)
    T = made.n_blocks
    U = made.centre.repeat(2 * made.n_outputs, 1) * normal(T, 1, seed=5).abs()
    point = ParallelPoint(torch.arange(T), U, normal(made.n_outputs, seed=6))
    weights = ParallelWeights.of(made, point)
    torch.testing.assert_close(weights.outputs(made.problem.X), made.output(point))
    balanced = weights.balanced()
    assert balanced.penalty() == pytest.approx(float(U.norm(dim=1).sum()))
    module = balanced.module(hidden_bias=False, output_bias=True)
    torch.testing.assert_close(module(made.problem.X).detach(), made.output(point))
    back = from_module(module)
    assert back.penalty() == pytest.approx(balanced.penalty())
    torch.testing.assert_close(back.outputs(made.problem.X), made.output(point))


@pytest.mark.parametrize("case", CASES[4:], ids=str)
def test_any_dual_point_bounds_any_feasible_point(case):
    made = program(**case)
    found = solve_parallel(made, ProgramLimits(1e-6))
    for seed in range(8):
        V = found.V + 0.05 * normal(*found.V.shape, seed=seed) * found.V.abs().mean()
        multipliers = 0.02 * normal(made.n_blocks, len(made.cones.row_sizes), seed=seed)
        assert judge_dual(made, V, multipliers).bound <= found.judgement.objective + 1e-12
        U = normal(made.n_blocks, made.centre.shape[1], seed=seed) * 0.1
        _, objective = judge_primal(made, ParallelPoint(torch.arange(made.n_blocks), U, made.problem.constant()))
        assert found.judgement.dual.bound <= objective


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_working_set_agrees_with_cvxpy(case):
    made = program(**case)
    ours, theirs = solve_parallel(made, ProgramLimits(1e-6)), solve_parallel_reference(made, ProgramLimits(1e-6))
    assert ours.judgement.gap() <= 1e-6
    assert ours.judgement.objective == pytest.approx(theirs.judgement.objective, rel=1e-5)
    assert ours.judgement.dual.bound <= theirs.judgement.objective * (1 + 1e-9)
    feasible, objective = judge_primal(made, ours.judgement.point)
    assert objective == pytest.approx(ours.judgement.objective)
    assert float(made.blocks(feasible.index).cones.forward(feasible.U).min()) >= -1e-12
    small = shrunk(ours.judgement.point, made, 1e-4)
    assert len(small.index) < made.n_blocks
    assert made.objective(small) <= objective * (1 + 2e-6)


def test_one_hidden_neuron_is_the_two_layer_program_over_the_same_patterns():
    """(sigma (X z)_+)_+ is (X z)_+ for sigma = +1 and nothing for -1."""
    made = program(width=1, second=0)
    generator = seeded(0)
    patterns = sample_patterns(made.problem.X, 6, generator)
    ours = solve_parallel(made, ProgramLimits(1e-7)).judgement.objective
    two = solve_reference(ReLUProgram(made.problem, patterns), ProgramLimits(1e-7)).judgement.objective
    assert ours == pytest.approx(two, rel=1e-6)


def test_two_equal_hidden_neurons_make_a_two_layer_neuron_cheaper_by_the_root_of_two():
    """b (X w)_+ twice with b / sqrt(2) each gives sqrt(2) for the same ||b||: weight decay sqrt(2) times as small."""
    made = program(width=2, second=0, wd=0.02 * 2**0.5)
    patterns = sample_patterns(made.problem.X, 6, seeded(0))
    ours = solve_parallel(made, ProgramLimits(1e-7)).judgement.objective
    cheaper = Problem(made.problem.X, made.problem.loss, 0.02, True)
    two = solve_reference(ReLUProgram(cheaper, patterns), ProgramLimits(1e-7)).judgement.objective
    assert ours == pytest.approx(two, rel=1e-6)


def test_more_branches_never_raise_the_optimum():
    few, many = program(second=1), program(second=4)
    joined = few.branches.joined(many.branches)[0]
    both = ParallelProgram(few.problem, joined)
    less = solve_parallel(both, ProgramLimits(1e-7)).judgement.dual.bound
    assert less <= solve_parallel(few, ProgramLimits(1e-7)).judgement.objective + 1e-12


def test_limits_and_interrupts_keep_the_best_answer():
    made = program()
    found = solve_parallel(made, ProgramLimits(1e-9, max_seconds=1e-9))
    assert found.judgement.dual.bound <= found.judgement.objective
    assert np.isfinite(found.judgement.objective)

    def interrupt(entry):
        raise KeyboardInterrupt

    stopped = solve_parallel(made, ProgramLimits(1e-9), report=interrupt)
    assert stopped.status.name == "INTERRUPTED"
    assert stopped.judgement.objective < made.objective(made.zero())


def test_bad_modules_and_branches_are_named():
    made = program()
    with pytest.raises(InvalidInputError, match="none"):
        ParallelProgram(made.problem, made.branches.take(torch.arange(0)))
    with pytest.raises(InvalidInputError, match="columns"):
        ParallelProgram(program(d=4).problem, made.branches)
    linear = torch.nn.Linear
    with pytest.raises(UnsupportedNetworkError, match="expected"):
        from_module(torch.nn.Sequential(linear(2, 2), torch.nn.ReLU(), linear(2, 1)))
    relu = torch.nn.ReLU()
    with pytest.raises(UnsupportedNetworkError, match="bias"):
        from_module(torch.nn.Sequential(linear(2, 2), relu, linear(2, 2), relu, linear(2, 1)))
    with pytest.raises(UnsupportedNetworkError, match="several branches"):
        from_module(torch.nn.Sequential(linear(2, 2), relu, linear(2, 2, bias=False), relu, linear(2, 1)))


def test_cones_of_zero_samples_have_no_rows():
    made = program(zero=True)
    assert len(BranchCones.of(made.problem.X, made.branches).X) == len(made.problem.X) - 1
