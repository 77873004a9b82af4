"""A small convolutional network that is provably robust, on MNIST: trained, attacked, certified.

Run it with: python examples/certified_training_mnist.py --eps 0.1 --checkpoint mnist.pt   (long: 70 epochs)
             python examples/certified_training_mnist.py --eps 0.3 --alpha 0.5 --contrast --checkpoint large.pt
             python examples/certified_training_mnist.py --quick                            (seconds; a toy)

MNIST is read from ../shared/data/mnist.npz, or the file that you name; elsewhere scikit-learn's digits stand in, blown
up to 28 x 28 pixels. A run that is killed goes on from its checkpoint. On a GPU add --device cuda.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import certify
from certify import training

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "mnist.npz"
DOMAIN = (0, 1)


def network(contrast: bool) -> nn.Sequential:
    """166,702 parameters."""
    return nn.Sequential(
        # At large radii: black and white pixels are known whatever the perturbation, only those between are not.
        *([training.Contrast(0.45, 0.55)] if contrast else []),
        *(nn.Conv2d(1, 16, 4, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 4, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(32 * 7 * 7, 100), nn.BatchNorm1d(100), nn.ReLU(), nn.Linear(100, 10)),
    )


def images(path: Path) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Training and test images (n, 1, 28, 28) in [0, 1], and their labels."""
    try:
        with np.load(path) as file:
            parts = [file[name] for name in ("x_train", "y_train", "x_test", "y_test")]
    except FileNotFoundError:
        print(f"no MNIST at {path}: scikit-learn's digits stand in")
        X, y = load_digits(return_X_y=True)
        large = np.pad(np.kron(X.reshape(-1, 8, 8) / 16 * 255, np.ones((1, 3, 3))), ((0, 0), (2, 2), (2, 2)))
        parts = [large[:1400], y[:1400], large[1400:], y[1400:]]
    X_train, y_train, X_test, y_test = (torch.as_tensor(np.asarray(v)) for v in parts)
    return X_train[:, None].float() / 255, y_train.long(), X_test[:, None].float() / 255, y_test.long()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--eps", type=float, default=0.1)
    parser.add_argument("--method", default="mtl-ibp", choices=list(training.LOSSES))
    parser.add_argument("--alpha", type=float, default=0.1)
    parser.add_argument("--contrast", action="store_true", help="clip pixels to black and white first")
    parser.add_argument("--epochs", type=int, default=70)
    parser.add_argument("--checkpoint")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--certify", type=int, help="how many test images to certify; default all")
    options = parser.parse_args()

    X_train, y_train, X_test, y_test = images(options.data)
    epochs, count = (3, 50) if options.quick else (options.epochs, options.certify or len(X_test))
    if options.quick:
        X_train, y_train = X_train[:1500], y_train[:1500]
    loader = DataLoader(TensorDataset(X_train, y_train), batch_size=64 if options.quick else 256, shuffle=True)
    recipe = training.Recipe(
        epochs=epochs,
        warmup=0.0 if options.quick else 1.0,
        ramp=2 * epochs / 7,
        learning_rate=2e-3 if options.quick else 5e-4,
        milestones=(5 * epochs // 7, 6 * epochs // 7),
    )
    report = training.fit(
        network(options.contrast).to(options.device),
        loader,
        eps=options.eps,
        method=options.method,
        alpha=options.alpha,
        recipe=recipe,
        domain=DOMAIN,
        checkpoint=options.checkpoint,
    )
    last = report.trace[-1]
    print(f"{report.epochs} epochs, {report.seconds:.0f} s; proved by intervals in training: {last['proved']:.2%}")
    trained = report.network.cpu()
    if options.checkpoint:
        torch.save(trained.state_dict(), Path(options.checkpoint).with_suffix(".weights.pt"))
    found = certify.certified_accuracy(
        trained,
        X_test[:count],
        y_test[:count],
        eps=options.eps,
        domain=DOMAIN,
        method="ibp" if options.quick else "auto",
    )
    print(found)


if __name__ == "__main__":
    main()
