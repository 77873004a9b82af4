"""An ONNX network and a VNN-LIB property: train, write both files, verify, replay the witness.

Run it with: python examples/verify_onnx.py
"""

import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import nn

import certify

# 1. A small network learns a controller: push against the position and the speed of a cart.
torch.manual_seed(0)
state = torch.rand(2000, 2) * 4 - 2
wanted = torch.tanh(-2 * state[:, :1] - state[:, 1:])
network = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))
optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
for _ in range(500):
    optimiser.zero_grad()
    loss = nn.functional.mse_loss(network(state), wanted)
    loss.backward()
    optimiser.step()
print(f"Trained a controller, mean squared error {loss.item():.2g}.")

folder = Path(tempfile.mkdtemp())
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the exporter's own deprecations
    torch.onnx.export(network, (torch.zeros(1, 2),), str(folder / "controller.onnx"), dynamo=False)


# 2. Properties describe what is UNSAFE. Right of 0.5 and not moving left, the push must not be to the right ...
def write(name: str, unsafe: str) -> Path:
    """A VNN-LIB 1.0 file."""
    declared = "".join(f"(declare-const {v} Real)\n" for v in ("X_0", "X_1", "Y_0"))
    box = "(assert (and (>= X_0 0.5) (<= X_0 2.0) (>= X_1 0.0) (<= X_1 2.0)))\n"
    path = folder / name
    path.write_text(f"{declared}{box}(assert {unsafe})\n")
    return path


safe = write("never_right.vnnlib", "(>= Y_0 0.0)")
verdict = certify.verify_vnnlib(folder / "controller.onnx", safe, timeout=20)
print(f"\nCan it push to the right there?\n{verdict}")
assert verdict.answer is certify.Answer.UNSAT

# 3. ... and a property that is too much to ask: the push is never stronger than 0.99, nor weaker than 0.9.
strict = write("always_firm.vnnlib", "(or (<= Y_0 -0.99) (>= Y_0 -0.9))")
verdict = certify.verify_vnnlib(folder / "controller.onnx", strict, timeout=20)
print(f"\nCan the push be outside [-0.99, -0.9]?\n{verdict}")
assert verdict.witness is not None

# 4. The witness is an input that anybody can replay.
session = onnxruntime.InferenceSession(str(folder / "controller.onnx"), providers=["CPUExecutionProvider"])
(output,) = session.run(None, {session.get_inputs()[0].name: verdict.witness.inputs})
print(f"\nonnxruntime on the witness {verdict.witness.inputs.ravel()}: {output.ravel()}")
assert np.array_equal(output, verdict.witness.outputs)

print(f"\nThe same from a shell:\n  certify verify --network N={folder}/controller.onnx --timeout 20 {strict}")
