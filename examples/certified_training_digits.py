"""Fronts of natural against certified accuracy: three losses, several weights of the bounds, digits of 8 x 8 pixels.

Run it with: python examples/certified_training_digits.py           (minutes; writes certified_training_digits.svg)
             python examples/certified_training_digits.py --quick   (seconds; two losses, two weights, few epochs)

The front is made on validation images; the network chosen there is certified on test images that had no part in it.
"""

import argparse

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import certify
from certify import training

EPS, DOMAIN = 0.1, (0, 1)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))


def splits() -> list[torch.Tensor]:
    """Training, validation and test images and labels."""
    X, y = load_digits(return_X_y=True)
    rest, X_test, y_rest, y_test = train_test_split(X / 16, y, test_size=400, random_state=0, stratify=y)
    X_train, X_val, y_train, y_val = train_test_split(rest, y_rest, test_size=300, random_state=0, stratify=y_rest)
    arrays = (X_train, y_train, X_val, y_val, X_test, y_test)
    return [torch.as_tensor(v, dtype=torch.float32 if v.ndim == 2 else torch.long) for v in arrays]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", default="certified_training_digits.svg")
    parser.add_argument("--keep", help="a folder for checkpoints: a run that was stopped goes on from them")
    options = parser.parse_args()

    X_train, y_train, X_val, y_val, X_test, y_test = splits()
    loader = DataLoader(TensorDataset(X_train, y_train), batch_size=64, shuffle=True)
    epochs = 30 if options.quick else 80
    recipe = training.Recipe(
        epochs=epochs,
        ramp=epochs / 3,
        milestones=(3 * epochs // 4, 9 * epochs // 10),
        learning_rate=2e-3,
        l1=1e-5,
    )
    front = training.front(
        network,
        loader,
        X_val[:100] if options.quick else X_val,
        y_val[:100] if options.quick else y_val,
        eps=EPS,
        domain=DOMAIN,
        recipe=recipe,
        methods=("mtl-ibp", "exp-ibp") if options.quick else ("cc-ibp", "mtl-ibp", "exp-ibp"),
        alphas=(0.5, 1.0) if options.quick else (0.03, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0),
        plan="crown" if options.quick else "auto",
        directory=options.keep,
    )
    print(f"validation, l_inf {EPS}: alpha 1 is plain interval training")
    print(front)
    front.plot(options.out)
    print(f"wrote {options.out}")

    chosen = front.best()
    report = certify.certified_accuracy(
        chosen.network, X_test, y_test, eps=EPS, domain=DOMAIN, method="crown" if options.quick else "auto"
    )
    print(f"chosen on validation: {chosen.method}, alpha {chosen.alpha:g}; on test images:")
    print(report)


if __name__ == "__main__":
    main()
