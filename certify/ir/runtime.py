"""The network as onnxruntime runs it: the judge of every import and every witness."""

from math import prod
from typing import Any

import numpy as np

from certify.errors import InvalidInputError, MissingDependencyError

_KINDS: dict[str, Any] = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16}


class Runtime:
    """One input and one output, run on one thread.

    Attributes:
        dtype: precision of the input.
        shape: of the input; by default as the file declares it, 1 for axes that it leaves open.
    """

    def __init__(self, content: bytes | str, shape: tuple[int, ...] | None = None) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingDependencyError(
                "running an ONNX network needs the package onnxruntime; install it with pip install 'convexnn[onnx]'"
            ) from error
        options = onnxruntime.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads, options.inter_op_num_threads = 4, 1, 1
        try:
            self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's own errors have no common class
            raise InvalidInputError(f"onnxruntime cannot load the network: {error}") from error
        constants = {value.name for value in self._session.get_overridable_initializers()}
        (self._input,) = (value for value in self._session.get_inputs() if value.name not in constants)
        self.dtype = np.dtype(_KINDS.get(self._input.type, np.float32))
        self.shape = shape or tuple(axis if isinstance(axis, int) else 1 for axis in self._input.shape)

    @property
    def size(self) -> int:
        """Number of inputs."""
        return prod(self.shape)

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        """The outputs for one input of any shape of the right size, in the network's precision."""
        shaped = np.asarray(inputs, dtype=self.dtype).reshape(self.shape)
        try:
            return np.asarray(self._session.run(None, {self._input.name: shaped})[0])
        except Exception as error:
            raise InvalidInputError(f"onnxruntime cannot run the network: {error}") from error
