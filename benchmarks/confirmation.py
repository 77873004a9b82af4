"""How far confirmed gaps of kind local-search can be trusted: a second search with other random numbers.

    python -m benchmarks.confirmation             # eight seeds a problem: about three minutes

The problems of benchmarks.training at weight decay 1e-3. Each run trains until a gap of 1e-4 is confirmed; then a
search with four times the fresh starts of a confirmation and other random numbers looks for a neuron that violates
the dual constraint at the residual of the network. "violation" is its M / weight_decay - 1. "over the best" compares
with the best objective of all seeds: a lower bound of what the run missed.
"""

import argparse
from dataclasses import replace

import torch

import convexnn
from benchmarks.training import small_cells
from convexnn.ascent import ColumnPairs
from convexnn.data import read_matrix
from convexnn.duality import judge
from convexnn.network import from_torch
from convexnn.solvers.sliding import CONFIRMATION
from convexnn.task import read_task

EFFORT = replace(CONFIRMATION, n_starts=4 * CONFIRMATION.n_starts, patience=6, generations=30, n_elite=600)


def violation(X: object, y: object, network: torch.nn.Module, loss: str, weight_decay: float) -> float:
    """Largest M / weight_decay - 1 that the second search finds at the residual of the network."""
    task = read_task(read_matrix(X), y, loss, weight_decay, (False, False), None, torch.device("cpu"))
    problem, neurons = task.reduced, task.reduction.restrict(from_torch(network))
    found = judge(
        problem,
        problem.dual_point(neurons(problem.X)),
        neurons,
        effort=EFFORT,
        generator=torch.Generator().manual_seed(987_654_321),
        pairs=ColumnPairs.fit(problem.X),
    )
    return found.candidates.best() / weight_decay - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8)
    seeds = range(parser.parse_args().seeds)
    torch.set_num_threads(1)
    for problem in small_cells():
        if problem.weight_decay != 1e-3:
            continue
        y, settings = problem.Y[:, 0], {"loss": problem.loss, "weight_decay": problem.weight_decay}
        biases = {"hidden_bias": False, "output_bias": False}
        results = [convexnn.train(problem.X, y, tol=1e-4, random_state=seed, **biases, **settings) for seed in seeds]
        best = min(result.objective for result in results)
        print(f"\n### {problem.name}, {problem.loss}, weight decay {problem.weight_decay:g}\n")
        print("| seed | seconds | gap, confirmed | over the best | violation |\n|---|---|---|---|---|")
        for seed, result in zip(seeds, results, strict=True):
            found = violation(problem.X, y, result.network, problem.loss, problem.weight_decay)
            over = result.objective / best - 1
            print(f"| {seed} | {result.seconds:.2f} | {result.gap:.1e} | {over:.1e} | {found:.1e} |", flush=True)


if __name__ == "__main__":
    main()
