"""Prove what a trained ReLU network cannot do inside a region of inputs.

Names load on first use, so that `import certify` stays cheap and does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from certify import bounds, training
    from certify.accuracy import AccuracyReport, certified_accuracy
    from certify.errors import (
        CertifyError,
        EmptyQueryError,
        ImportMismatchError,
        InvalidInputError,
        InvalidTypeError,
        QueryError,
        ResultsFileError,
        TrainModeError,
        UnsupportedOp,
        WorkerLostError,
    )
    from certify.instances import Instance, read_instances
    from certify.ir.from_torch import graph_from_torch
    from certify.ir.module import module_from_onnx
    from certify.many import ManyVerdicts, verify_many
    from certify.maps import AccuracyMap, accuracy_map
    from certify.properties import Case, Query, read_vnnlib
    from certify.queries import verify_vnnlib
    from certify.regions import Box, LpBall
    from certify.regions.spatial import Deformation, VectorField
    from certify.search import PGD, Plan
    from certify.verdict import Answer, QueryVerdict, Status, Verdict, Witness
    from certify.verification import verify

_HOMES = {
    "AccuracyMap": "certify.maps",
    "AccuracyReport": "certify.accuracy",
    "Box": "certify.regions",
    "CertifyError": "certify.errors",
    "ImportMismatchError": "certify.errors",
    "InvalidInputError": "certify.errors",
    "InvalidTypeError": "certify.errors",
    "Deformation": "certify.regions.spatial",
    "LpBall": "certify.regions",
    "PGD": "certify.search",
    "Plan": "certify.search",
    "Status": "certify.verdict",
    "TrainModeError": "certify.errors",
    "UnsupportedOp": "certify.errors",
    "Verdict": "certify.verdict",
    "accuracy_map": "certify.maps",
    "certified_accuracy": "certify.accuracy",
    "graph_from_torch": "certify.ir.from_torch",
    "module_from_onnx": "certify.ir.module",
    "Answer": "certify.verdict",
    "Case": "certify.properties",
    "EmptyQueryError": "certify.errors",
    "Instance": "certify.instances",
    "ManyVerdicts": "certify.many",
    "Query": "certify.properties",
    "QueryError": "certify.errors",
    "QueryVerdict": "certify.verdict",
    "ResultsFileError": "certify.errors",
    "Witness": "certify.verdict",
    "VectorField": "certify.regions.spatial",
    "WorkerLostError": "certify.errors",
    "read_instances": "certify.instances",
    "verify_many": "certify.many",
    "read_vnnlib": "certify.properties",
    "verify_vnnlib": "certify.queries",
    "verify": "certify.verification",
}

__all__ = [
    "PGD",
    "AccuracyMap",
    "AccuracyReport",
    "Answer",
    "Box",
    "Case",
    "CertifyError",
    "Deformation",
    "EmptyQueryError",
    "ImportMismatchError",
    "Instance",
    "InvalidInputError",
    "InvalidTypeError",
    "LpBall",
    "ManyVerdicts",
    "Plan",
    "Query",
    "QueryError",
    "QueryVerdict",
    "ResultsFileError",
    "Status",
    "TrainModeError",
    "UnsupportedOp",
    "VectorField",
    "Verdict",
    "Witness",
    "WorkerLostError",
    "accuracy_map",
    "bounds",
    "certified_accuracy",
    "graph_from_torch",
    "module_from_onnx",
    "read_instances",
    "read_vnnlib",
    "training",
    "verify",
    "verify_many",
    "verify_vnnlib",
]


def __getattr__(name: str) -> Any:
    if name in ("bounds", "training"):
        return import_module(f"certify.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'certify' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
