"""Train small ReLU networks to the global optimum through convex reformulations."""

from importlib import import_module
from typing import Any

_PUBLIC = {
    "train": "convexnn.training",
    "optimality_gap": "convexnn.gap",
    "lower_worst_case": "convexnn.lowering",
    "LoweredWorstCase": "convexnn.lowering",
    "TrainingResult": "convexnn.result",
    "OptimalityGap": "convexnn.result",
    "ProofReport": "convexnn.result",
    "Robust": "convexnn.robust.training",
    "RobustReport": "convexnn.result",
    "Constraints": "convexnn.constraints",
    "ConstraintReport": "convexnn.result",
    "InfeasibleConstraintsError": "convexnn.errors",
    "demographic_parity": "convexnn.constraints",
    "equal_opportunity": "convexnn.constraints",
    "monotone": "convexnn.constraints",
    "output_caps": "convexnn.constraints",
    "Status": "convexnn.result",
    "TraceEntry": "convexnn.result",
    "ConvexReLUClassifier": "convexnn.estimators",
    "ConvexReLURegressor": "convexnn.estimators",
    "prune": "convexnn.solutions.pruning",
    "PrunedNetwork": "convexnn.solutions.pruning",
    "pruning_curve": "convexnn.solutions.shrinking",
    "PruningCurve": "convexnn.solutions.shrinking",
    "optimal_set": "convexnn.solutions.optima",
    "OptimalSet": "convexnn.solutions.optimal_sets",
    "OptimalNetwork": "convexnn.solutions.optimal_sets",
    "path": "convexnn.solutions.paths",
    "RegularisationPath": "convexnn.solutions.paths",
    "PathPoint": "convexnn.solutions.paths",
    "sensitivity": "convexnn.solutions.derivatives",
    "Sensitivity": "convexnn.solutions.derivatives",
    "ConvexReLUClassifierCV": "convexnn.crossvalidation",
    "ConvexReLURegressorCV": "convexnn.crossvalidation",
    "to_onnx": "convexnn.onnx",
    "train_linear": "convexnn.deep.linear",
    "LinearNetwork": "convexnn.deep.linear",
    "depth_gaps": "convexnn.deep.linear",
    "train_parallel": "convexnn.deep.training",
    "parallel_objective": "convexnn.deep.training",
    "ParallelResult": "convexnn.deep.training",
    "DepthGap": "convexnn.deep.linear",
}

__all__ = [
    "ConstraintReport",
    "Constraints",
    "ConvexReLUClassifier",
    "ConvexReLUClassifierCV",
    "ConvexReLURegressor",
    "ConvexReLURegressorCV",
    "DepthGap",
    "InfeasibleConstraintsError",
    "LinearNetwork",
    "LoweredWorstCase",
    "OptimalNetwork",
    "OptimalSet",
    "OptimalityGap",
    "ParallelResult",
    "PathPoint",
    "ProofReport",
    "PrunedNetwork",
    "PruningCurve",
    "RegularisationPath",
    "Robust",
    "RobustReport",
    "Sensitivity",
    "Status",
    "TraceEntry",
    "TrainingResult",
    "demographic_parity",
    "depth_gaps",
    "equal_opportunity",
    "lower_worst_case",
    "monotone",
    "optimal_set",
    "optimality_gap",
    "output_caps",
    "parallel_objective",
    "path",
    "prune",
    "pruning_curve",
    "sensitivity",
    "to_onnx",
    "train",
    "train_linear",
    "train_parallel",
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'convexnn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
