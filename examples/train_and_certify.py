"""Train a small network to its global optimum, then prove what it cannot do.

Run it with: python examples/train_and_certify.py
"""

from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split

import certify
from convexnn import ConvexReLUClassifier

# 1. Real data: is a tumour malignant (0) or benign (1)? Features are scaled with the training part only.
data = load_breast_cancer()
X, X_test, y, y_test = train_test_split(data.data, data.target, test_size=0.25, random_state=0)
mean, std = X.mean(axis=0), X.std(axis=0)
X, X_test = (X - mean) / std, (X_test - mean) / std

# 2. Train. There is no width, no learning rate and no number of epochs to choose.
model = ConvexReLUClassifier(weight_decay=1e-2, tol=1e-3, max_seconds=30, random_state=0).fit(X, y)
print("Trained a two-layer ReLU network:\n")
print(model.result_)
print(f"\nHeld-out accuracy {model.score(X_test, y_test):.1%} with this network:\n{model.network_}")

# 3. Certify one tumour: no change of any measurement by up to 0.2 standard deviations changes the answer ...
verdict = certify.verify(model.network_, X_test[0], label=int(y_test[0]), eps=0.2, norm="linf", method="crown")
print(f"\nThe first held-out sample, radius 0.2:\n{verdict}")

# 4. ... and all of them, for a grid of radii. Attacked minus certified is what is still open.
print("\nradius   right   right under attack   proved right on the whole ball")
for eps in (0.0, 0.1, 0.2, 0.4):
    report = certify.certified_accuracy(model.network_, X_test, y_test, eps=eps, norm="linf", method="crown")
    print(f"{eps:6.1f}  {report.clean:6.1%}  {report.attacked:19.1%}  {report.certified:31.1%}")
