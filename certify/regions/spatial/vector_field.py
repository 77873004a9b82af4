"""What a user says about vector fields, checked: limits, and an image to deform."""

from dataclasses import dataclass
from functools import cached_property
from math import inf, isfinite
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from certify.errors import InvalidInputError, InvalidTypeError
from certify.inputs import as_inputs
from certify.regions.box import Box
from certify.regions.spatial.ball import Ball
from certify.regions.spatial.bilinear import deform, patches
from certify.regions.spatial.canvas import Canvas
from certify.regions.spatial.deformations import Deformations, pixel_box
from certify.regions.spatial.flows import Flows
from certify.regions.spatial.planes import Plane, planes_below

_NORMS = {"l1": 1.0, "l2": 2.0, "linf": inf, 1: 1.0, 2: 2.0, inf: inf}
_NAMES = {1: "l1", 2: "l2", inf: "linf"}
# Pixels beyond which the closed forms would hold more than a thousand candidates each.
_LARGEST_DELTA = 8.0
# Channels of an image without a batch axis in front: more of them look like a batch.
_CHANNELS = 4


@dataclass(frozen=True)
class Deformation:
    """Limits of vector fields: I'(p) = I(p + v(p)), bilinear between pixels.

    Attributes:
        delta: the longest vector, in pixels.
        norm: of a vector: 1, 2 or infinity (also as "l1", "l2", "linf").
        gamma: how much each component of the vectors of neighbouring pixels may differ; None (or infinity) for any.
        padding: what lies beyond the image: "border" continues its border.

    Raises:
        InvalidInputError: for negative, NaN or excessive limits, an unknown norm or padding.
    """

    delta: Any
    norm: Any = inf
    gamma: Any = None
    padding: str = "border"

    def __post_init__(self) -> None:
        object.__setattr__(self, "delta", _limit(self.delta, "delta", "a finite length >= 0, in pixels"))
        if self.delta > _LARGEST_DELTA:
            raise InvalidInputError(f"delta is {self.delta} pixels; expected at most {_LARGEST_DELTA:g}")
        if not isinstance(self.norm, int | float | str) or self.norm not in _NORMS:
            raise InvalidInputError(f"norm is {self.norm!r}; expected 1, 2 or infinity, or 'l1', 'l2', 'linf'")
        object.__setattr__(self, "norm", _NORMS[self.norm])
        if self.gamma is not None and self.gamma != inf:
            object.__setattr__(
                self, "gamma", _limit(self.gamma, "gamma", "a number >= 0 in pixels, or None for no limit")
            )
        elif self.gamma == inf:
            object.__setattr__(self, "gamma", None)
        if self.padding != "border":
            raise InvalidInputError(f"padding is {self.padding!r}; expected 'border', the only one")

    @property
    def coupled(self) -> bool:
        """Whether gamma says anything: two vectors of the disc differ by at most 2 delta in each component."""
        return self.gamma is not None and self.gamma < 2 * self.delta

    def holds(self, other: "Deformation") -> bool:
        """Whether all of the other's fields are within these limits, by comparing them one by one.

        |v|_inf <= |v|_2 <= |v|_1: discs of one radius grow with the number of the norm.
        """
        own, theirs = (limits.gamma if limits.coupled else inf for limits in (self, other))
        return bool(self.delta >= other.delta and self.norm >= other.norm and own >= theirs)

    @property
    def name(self) -> str:
        """As reports call the norm."""
        return _NAMES[self.norm]

    @property
    def ball(self) -> Ball:
        """The disc of a single vector; needs delta > 0."""
        return Ball(self.delta, float(self.norm))

    def canvas(self, images: Float[Tensor, "batch channels height width"]) -> Canvas:
        """Images, and the region that holds what fields make of them."""
        if self.delta == 0:
            return Canvas(images, Box(images.flatten(1), images.flatten(1)), None)
        outer: Box | Deformations
        if self.coupled and self.gamma is not None:
            outer = Deformations.of(images, self.ball, self.gamma)
        else:
            outer = pixel_box(images, self.ball)
        return Canvas(images, outer, self.ball)

    def flows(self, images: Float[Tensor, "batch channels height width"]) -> Flows:
        """The fields, one set for each image."""
        batch, _, height, width = images.shape
        zeros = torch.zeros((batch, 2 * height * width), dtype=torch.float64, device=images.device)
        ball = Ball(self.delta or 1e-200, float(self.norm))
        return Flows(ball, self.gamma if self.coupled else None, zeros, height, width)

    def __str__(self) -> str:
        smooth = "any gamma" if self.gamma is None else f"gamma {self.gamma:g}"
        return f"vector fields of {self.name} length {self.delta:g}, {smooth}"


def _limit(value: Any, name: str, expected: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise InvalidTypeError(f"{name} is {value!r}; expected {expected}") from None
    if not (isfinite(number) and number >= 0):
        raise InvalidInputError(f"{name} is {number}; expected {expected}")
    return number


def image_of(value: Any, name: str = "the image") -> Float[Tensor, "1 channels height width"]:
    """One image from (height, width), (channels, height, width) or (1, channels, height, width).

    Raises:
        InvalidInputError: for a batch, channels last, or another number of axes.
    """
    image = as_inputs(value, name)
    shape = tuple(image.shape)
    if image.ndim == 4 and len(image) != 1:
        raise InvalidInputError(f"{name} has shape {shape}, a batch; expected one image: certified_accuracy takes many")
    if image.ndim not in (2, 3, 4):
        raise InvalidInputError(
            f"{name} has shape {shape}; expected (height, width) or (channels, height, width): reshape it, as vector"
            " fields need to know which pixels are neighbours"
        )
    shaped = image.reshape((1,) * (4 - image.ndim) + shape)
    check_layout(shaped, shape, name, sure=image.ndim == 4)
    return shaped


def as_images(inputs: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch channels height width"]:
    """A batch of images (height, width) or (channels, height, width), with an axis for channels.

    Raises:
        InvalidInputError: for channels last, or another number of axes.
    """
    shape = tuple(inputs.shape)
    if inputs.ndim not in (3, 4):
        raise InvalidInputError(
            f"the inputs have shape {shape}; expected images (batch, height, width) or (batch, channels, height,"
            " width): reshape them, as vector fields need to know which pixels are neighbours"
        )
    images = inputs if inputs.ndim == 4 else inputs.unsqueeze(1)
    check_layout(images, shape, "X", sure=True)
    return images


def check_layout(images: Float[Tensor, "batch channels height width"], shape: Any, name: str, *, sure: bool) -> None:
    """Raises InvalidInputError for channels last, and, unless the layout is `sure`, for what looks like a batch."""
    channels, _, last = images.shape[1:]
    if last <= _CHANNELS < channels:
        raise InvalidInputError(
            f"{name} has shape {shape}, which looks like channels last (HWC); expected channels first (CHW):"
            " use numpy.moveaxis(image, -1, -3)"
        )
    if channels > _CHANNELS and not sure:
        raise InvalidInputError(
            f"{name} has shape {shape}, which looks like a batch of {channels} images; expected one image (if these are"
            f" channels, pass shape (1, {', '.join(map(str, images.shape[1:]))}))"
        )


@dataclass(frozen=True, eq=False)
class VectorField:
    """The images I(p + v(p)) of one image for all vector fields v within limits (Ruoss et al., AAAI 2021).

    Attributes:
        image: (height, width), (channels, height, width) or (1, channels, height, width); all channels share a field.
        delta, norm, gamma, padding: as in `Deformation`.

    Raises:
        InvalidInputError: for bad limits, a batch, or channels last; says what to do.

    A field is an array `(2, height, width)`: how far to the right, and how far down, a pixel looks.
    """

    image: Any
    delta: Any
    norm: Any = inf
    gamma: Any = None
    padding: str = "border"

    def __post_init__(self) -> None:
        object.__setattr__(self, "image", image_of(self.image))
        object.__setattr__(self, "delta", self.limits.delta)

    @property
    def limits(self) -> Deformation:
        """Without the image."""
        return Deformation(self.delta, self.norm, self.gamma, self.padding)

    @cached_property
    def flows(self) -> Flows:
        """The set of fields, flat."""
        return self.limits.flows(self.image)

    @cached_property
    def canvas(self) -> Canvas:
        """The region that bounding methods see."""
        return self.limits.canvas(self.image)

    def deform(self, fields: Float[Tensor, "batch 2 height width"]) -> Float[Tensor, "batch channels height width"]:
        """The deformed images; differentiable."""
        return deform(self.image.to(fields).expand(len(fields), -1, -1, -1), fields)

    def intervals(self) -> tuple[Float[Tensor, "channels height width"], Float[Tensor, "channels height width"]]:
        """What every pixel can be, exact and rounded outward."""
        lower, upper = self.canvas.outer.bounding_box()
        return lower.reshape(self.image.shape[1:]), upper.reshape(self.image.shape[1:])

    def planes(self) -> tuple[Plane, Plane]:
        """For every pixel a + b.v below it and a + b.v above it, for all |v| <= delta; of least total gap."""
        if self.limits.delta == 0:
            still = (self.image[0], torch.zeros((*self.image.shape[1:], 2), dtype=self.image.dtype))
            return still, still
        around = patches(self.image, self.limits.ball.reach)[0]
        below, (height, slope) = planes_below(self.limits.ball, around), planes_below(self.limits.ball, -around)
        return below, (-height, -slope)

    def contains(self, fields: Float[Tensor, "batch 2 height width"], tolerance: float = 0.0) -> Bool[Tensor, " batch"]:
        """Whether fields are within the limits."""
        fields = torch.as_tensor(fields)
        return self.flows.select([0] * len(fields)).contains(fields.flatten(1), tolerance)

    def project(self, fields: Float[Tensor, "batch 2 height width"]) -> Float[Tensor, "batch 2 height width"]:
        """Nearly the nearest fields within the limits."""
        flows = self.flows.select([0] * len(fields))
        return flows.fields(flows.project(fields.double().flatten(1)))

    def sample(self, count: int, seed: int = 0) -> Float[Tensor, "count 2 height width"]:
        """Random fields within the limits."""
        flows = self.flows.select([0] * count)
        return flows.fields(flows.sample(torch.Generator().manual_seed(seed)))
