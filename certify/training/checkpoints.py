"""The state of a training run in a file, from which it goes on as if it had never stopped."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from certify.errors import ResultsFileError

_FORMAT = "certify training 1"
_KEYS = {"format", "asked", "network", "optimiser", "epoch", "trace", "random", "loader"}


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Where a run keeps its state; `asked` is what its result depends on, and another run does not go on from it."""

    path: Path
    asked: dict[str, Any]

    def save(
        self, network: nn.Module, optimiser: torch.optim.Optimizer, loader: Any, trace: list[dict[str, float]]
    ) -> None:
        """Replaces the file in one go, so that a run that is killed leaves the old one or the new one."""
        state = {
            "format": _FORMAT,
            "asked": self.asked,
            "network": network.state_dict(),
            "optimiser": optimiser.state_dict(),
            "epoch": len(trace),
            "trace": trace,
            "random": _random_state(),
            "loader": [g.get_state() for g in generators_of(loader)],
        }
        partial = self.path.with_name(self.path.name + ".partial")
        with partial.open("wb") as stream:
            torch.save(state, stream)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(self.path)

    def restore(
        self, network: nn.Module, optimiser: torch.optim.Optimizer, loader: Any
    ) -> list[dict[str, float]] | None:
        """The trace so far, with everything set as it was; None where there is no file yet.

        Raises:
            ResultsFileError: for a file that is something else, damaged, or of another run.
        """
        if not self.path.exists():
            return None
        state = self._read()
        try:
            network.load_state_dict(state["network"])
            optimiser.load_state_dict(state["optimiser"])
        except (RuntimeError, ValueError) as error:
            raise ResultsFileError(f"{self.path} is of another network: {error}; choose another file") from error
        _set_random_state(state["random"])
        for generator, saved in zip(generators_of(loader), state["loader"], strict=True):
            generator.set_state(saved)
        trace: list[dict[str, float]] = state["trace"]
        return trace

    def _read(self) -> dict[str, Any]:
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise ResultsFileError(f"{self.path} cannot be read as a checkpoint: {error}; delete it") from error
        if not isinstance(state, dict) or set(state) != _KEYS or state["format"] != _FORMAT:
            raise ResultsFileError(f"{self.path} is no checkpoint of certified training; choose another file")
        if state["asked"] != self.asked:
            differs = sorted(k for k in self.asked if state["asked"].get(k) != self.asked[k])
            raise ResultsFileError(
                f"{self.path} is of a run with other settings ({', '.join(differs)}); choose another file"
            )
        return state


def _random_state() -> dict[str, Any]:
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def generators_of(loader: Any) -> list[torch.Generator]:
    """The loader's own random generators."""
    owners: Iterable[Any] = (loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None))
    found = [g for owner in owners if isinstance(g := getattr(owner, "generator", None), torch.Generator)]
    return list({id(g): g for g in found}.values())
