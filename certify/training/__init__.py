"""Training for verified robustness: losses, schedules, a loop, and fronts of accuracy against proofs."""

from certify.training.attacks import FGSM, PGD, Attack
from certify.training.bounds import backward_margin_bounds, margin_bounds
from certify.training.contrast import Contrast
from certify.training.enclosures import Enclosure
from certify.training.front import Front, FrontPoint, front
from certify.training.initialisation import initialise
from certify.training.loop import Recipe, TrainingReport, fit
from certify.training.losses import (
    CCIBP,
    CROWNIBP,
    IBP,
    LOSSES,
    MTLIBP,
    SABR,
    AbstractLoss,
    Adversarial,
    Evaluated,
    ExpIBP,
    Natural,
)
from certify.training.margins import log_losses, margins_of
from certify.training.passes import enclose
from certify.training.regularisers import l1_norm, stability
from certify.training.schedule import Ramp

__all__ = [
    "CCIBP",
    "CROWNIBP",
    "FGSM",
    "IBP",
    "LOSSES",
    "MTLIBP",
    "PGD",
    "SABR",
    "AbstractLoss",
    "Adversarial",
    "Attack",
    "Contrast",
    "Enclosure",
    "Evaluated",
    "ExpIBP",
    "Front",
    "FrontPoint",
    "Natural",
    "Ramp",
    "Recipe",
    "TrainingReport",
    "backward_margin_bounds",
    "enclose",
    "fit",
    "front",
    "initialise",
    "l1_norm",
    "log_losses",
    "margin_bounds",
    "margins_of",
    "stability",
]
