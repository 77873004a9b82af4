"""Certify a residual convolutional network as torch users write them, on real images.

Run it with: python examples/certify_residual_network.py
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

import certify


class Residual(nn.Module):
    """Two convolutions, a shortcut, pooling: nothing in it knows of certificates."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.short, self.head = nn.BatchNorm2d(8), nn.Conv2d(1, 8, 1, stride=2), nn.Linear(32, 10)

    def forward(self, x):
        """Scores of the ten digits."""
        y = functional.relu(self.norm(self.conv1(x)))
        y = self.conv2(y)
        y += self.short(x)
        return self.head(functional.max_pool2d(functional.leaky_relu(y, 0.1), 2).flatten(1))


# 1. Images of digits, 8 x 8, and a quick ordinary training.
digits = load_digits()
X, y = torch.tensor(digits.images / 16, dtype=torch.float32).unsqueeze(1), torch.tensor(digits.target)
torch.manual_seed(0)
torch.set_num_threads(1)
network = Residual()
optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
for _ in range(60):
    rows = torch.randint(0, 1500, (200,))
    noisy = (X[rows] + 0.1 * torch.randn_like(X[rows])).clamp(0, 1)
    optimizer.zero_grad()
    functional.cross_entropy(network(noisy), y[rows]).backward()
    optimizer.step()
network.eval()

# 2. What certify makes of it: BatchNorm is folded, pooling and leaky ReLU are written with ReLU.
graph = certify.graph_from_torch(network, input_shape=(1, 8, 8))
print("operations:", " ".join(type(node.op).__name__ for node in graph.nodes))

# 3. Each pixel may change by eps, within [0, 1].
print("\n  eps   right   proved by IBP   proved by CROWN")
for eps in (0.005, 0.02):
    reports = [
        certify.certified_accuracy(network, X[1500:1600], y[1500:1600], eps=eps, domain=(0, 1), method=method)
        for method in ("ibp", "crown")
    ]
    print(f"{eps:5.3f}  {reports[0].clean:6.1%}  {reports[0].certified:14.1%}  {reports[1].certified:16.1%}")
