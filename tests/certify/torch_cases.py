"""One small network for every torch function that is understood: name -> (network, shape of one input)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from certify_cases import seeded
from torch import Tensor, nn


class Fn(nn.Module):
    """A function, between two linear maps over the last axis where they are wanted."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Residual(nn.Module):
    """As torch users write them: an in-place ReLU, +=, a projection on the shortcut, x.flatten(1)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.bn1, self.bn2, self.short = nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.Conv2d(2, 4, 1, stride=2)
        self.relu, self.pool, self.fc = nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += self.short(x)
        return self.fc(self.pool(F.relu_(y)).flatten(1))


def constant(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def written_in_place(x: Tensor) -> Tensor:
    """The second summand is what ReLU wrote."""
    y = F.relu(x, inplace=True)
    return x + y


def keeps_a_copy(x: Tensor) -> Tensor:
    kept = x.clone()
    x.relu_()
    return x + kept


def steered_by_shapes(x: Tensor) -> Tensor:
    parts = [x[:, k] * (k + 1) for k in range(x.shape[1])] if x.dim() == 3 else [x]
    return torch.stack(parts, dim=1).view(x.size(0), -1)


SHAPES = {
    "flat": (6,),
    "line": (2, 7),
    "image": (2, 5, 4),
    "volume": (2, 3, 4, 3),
}

FLAT: dict[str, Callable[[Tensor], Tensor]] = {
    "abs": torch.abs,
    "absolute": lambda x: x.absolute(),
    "add": lambda x: torch.add(x, x.relu(), alpha=2) + constant(6),
    "addmm": lambda x: torch.addmm(constant(3), x, constant(6, 3), beta=0.5, alpha=2),
    "amax": lambda x: x.reshape(-1, 2, 3).amax(dim=2),
    "amin": lambda x: torch.amin(x, 1, keepdim=True),
    "cat": lambda x: torch.cat([x, constant(1, 2).expand(len(x), 2), x.relu()], dim=-1),
    "concat": lambda x: torch.concat((x, x), 1),
    "concatenate": lambda x: torch.concatenate([x, -x], dim=1),
    "clamp": lambda x: x.clamp(-0.3, 0.5),
    "clip": lambda x: torch.clip(x, min=-0.2),
    "clamp above": lambda x: x.clamp(max=torch.tensor(0.1)),
    "div": lambda x: torch.div(x, constant(6)),
    "dropout": lambda x: F.dropout(x, 0.5, training=False),
    "hardsigmoid": F.hardsigmoid,
    "hardtanh": lambda x: F.hardtanh(x, -0.5, 0.25),
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2, True),
    "matmul": lambda x: torch.matmul(x, constant(6, 4)) @ constant(4),
    "max": lambda x: torch.max(x, x.flip(1)),
    "maximum": lambda x: torch.maximum(x, constant(6)),
    "mean": lambda x: x.view(-1, 3, 2).mean(dim=(1,)) - x.mean(1, keepdim=True),
    "min": lambda x: x.min(x.roll(1, 1)),
    "minimum": lambda x: torch.minimum(constant(6), x),
    "mm": lambda x: torch.mm(x, constant(6, 2)),
    "mul": lambda x: 3 * x * constant(6),
    "multiply": lambda x: torch.multiply(x, -2.0),
    "neg": lambda x: -x,
    "negative": lambda x: x.negative(),
    "prelu": lambda x: F.prelu(x.view(-1, 3, 2), constant(3).abs() * 0.3),
    "radd": lambda x: 1.0 + x,
    "relu": lambda x: x.relu(),
    "relu6": lambda x: F.relu6(10 * x),
    "rmatmul": lambda x: (constant(4, 3) @ x.view(-1, 3, 2)).flatten(1),
    "rmul": lambda x: 2.0 * x,
    "rsub": lambda x: 1.0 - x + torch.rsub(x, constant(6), alpha=2),
    "sigmoid": torch.sigmoid,
    "stack": lambda x: torch.stack([x, x.relu()], dim=-1),
    "sub": lambda x: torch.sub(x, x.relu(), alpha=3) - constant(6),
    "subtract": lambda x: torch.subtract(x, 0.5),
    "sum": lambda x: x.view(-1, 2, 3).sum((1, 2), keepdim=True).flatten(1) + x.sum(-1, keepdim=True),
    "tanh": torch.tanh,
    "true_divide": lambda x: torch.true_divide(x, 3.0),
    "truediv": lambda x: x / 7.0,
    "mul, of a sum": lambda x: (2.0 * x + constant(6)) * constant(6, seed=1),
    "written in place": written_in_place,
    "written in place, a copy kept": lambda x: (2.0 * x).clone().relu_() + keeps_a_copy(x + 1.0),
    "pad": lambda x: F.pad(x.view(-1, 3, 2), (1, 2, 1, -1), value=0.5),
    "pad, of moved entries": lambda x: F.pad(x.view(-1, 3, 2).flip(1), (1, 2)),
    "pad, reflected": lambda x: F.pad(x.view(-1, 2, 3), (2, 1), mode="reflect"),
}

MOVED: dict[str, Callable[[Tensor], Tensor]] = {
    "slices": lambda x: torch.cat([x[..., ::2, 1:].flatten(1), x[:, 1, [0, 2], 3]], 1),
    "permute": lambda x: x.permute(0, 3, 1, 2).reshape(x.size(0), -1),
    "transpose": lambda x: x.transpose(1, -1).contiguous().view(-1, 40),
    "chunk": lambda x: torch.chunk(x, 2, dim=3)[1] + x.split([3, 1], dim=3)[0][..., :2],
    "unbind": lambda x: torch.stack(x.unbind(1), 1) + x.flip(1),
    "expand": lambda x: x[:, :1].expand(-1, 3, -1, -1) + x.mean((1, 2, 3), keepdim=True),
    "unfold": lambda x: x.unfold(2, 3, 1).flatten(1),
    "shuffle": lambda x: F.pixel_unshuffle(x[:, :, :4], 2),
    "squeeze": lambda x: x[:, :1].squeeze(1).unsqueeze(-1).movedim(1, 2),
    "steered by shapes": lambda x: steered_by_shapes(x.flatten(2)),
    "repeat": lambda x: x.repeat(1, 2, 1, 1) * x.tile((1, 2, 1, 1)).new_ones(1) + torch.ones_like(x).repeat(1, 2, 1, 1),
}

WINDOWS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "conv1d": (nn.Conv1d(2, 3, 3, stride=2, padding=2, dilation=2), "line"),
    "conv2d": (nn.Conv2d(2, 3, (3, 2), padding=(1, 2), padding_mode="reflect"), "image"),
    "conv2d, same": (nn.Conv2d(2, 4, (3, 2), padding="same", dilation=(1, 2), groups=2), "image"),
    "conv3d": (nn.Conv3d(2, 2, 2, stride=(1, 2, 1), padding=1), "volume"),
    "conv_transpose1d": (nn.ConvTranspose1d(2, 3, 3, stride=3, padding=1, output_padding=2), "line"),
    "conv_transpose2d": (nn.ConvTranspose2d(2, 4, 3, stride=2, padding=(1, 0), groups=2, dilation=2), "image"),
    "conv_transpose3d": (nn.ConvTranspose3d(2, 1, 2, bias=False), "volume"),
    "max_pool1d": (nn.MaxPool1d(3, 2, padding=1, dilation=2), "line"),
    "max_pool2d": (nn.MaxPool2d((3, 2), stride=(2, 1), padding=1, ceil_mode=True), "image"),
    "max_pool3d": (nn.MaxPool3d(2), "volume"),
    "avg_pool1d": (nn.AvgPool1d(3, 2, padding=1, ceil_mode=True), "line"),
    "avg_pool2d": (nn.AvgPool2d(3, 2, padding=1, ceil_mode=True, count_include_pad=False), "image"),
    "avg_pool2d, divided": (nn.AvgPool2d(2, 1, divisor_override=3), "image"),
    "avg_pool3d": (nn.AvgPool3d(2, 1), "volume"),
    "adaptive_avg_pool1d": (nn.AdaptiveAvgPool1d(7), "line"),
    "adaptive_avg_pool2d": (nn.AdaptiveAvgPool2d((5, 2)), "image"),
    "adaptive_avg_pool3d": (nn.AdaptiveAvgPool3d(1), "volume"),
    "adaptive_max_pool1d": (nn.AdaptiveMaxPool1d(1), "line"),
    "adaptive_max_pool2d": (nn.AdaptiveMaxPool2d((1, 2)), "image"),
    "adaptive_max_pool3d": (nn.AdaptiveMaxPool3d((3, 2, 1)), "volume"),
    "batch_norm": (nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 2, 2, padding=1), nn.BatchNorm2d(2)), "image"),
    "dropout2d": (nn.Sequential(nn.Dropout2d(), nn.Identity()), "image"),
    "dropout3d": (nn.Dropout3d(), "volume"),
    "dropout1d": (nn.Dropout1d(), "line"),
    "alpha_dropout": (nn.AlphaDropout(), "line"),
    "feature_alpha_dropout": (nn.FeatureAlphaDropout(), "image"),
    "residual": (Residual(), "image"),
    "linear": (nn.Sequential(nn.Linear(4, 3), nn.Flatten(), nn.Linear(30, 2)), "image"),
    "batch_norm, before groups": (nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 4, 2, groups=2)), "image"),
    "max_pool1d, last window outside": (nn.MaxPool1d(1, 7, ceil_mode=True), "line"),
    "avg_pool1d, last window half outside": (nn.AvgPool1d(2, ceil_mode=True), "line"),
    "avg_pool1d, last window outside": (nn.AvgPool1d(2, 4, padding=1, ceil_mode=True), "line"),
}


def _ready(module: nn.Module, seed: int) -> nn.Module:
    """Every parameter and statistic random, in eval mode."""
    g = seeded(seed)
    with torch.no_grad():
        for value in module.parameters():
            value.copy_(0.6 * torch.randn(value.shape, generator=g))
        for name, value in module.named_buffers():
            if value.is_floating_point():
                random = torch.rand(value.shape, generator=g)
                value.copy_(random + 0.5 if name.endswith("var") else random - 0.5)
    return module.eval()


TORCH_CASES: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    **{name: (Fn(function), SHAPES["flat"]) for name, function in FLAT.items()},
    **{name: (Fn(function), SHAPES["image"]) for name, function in MOVED.items()},
    **{name: (_ready(module, k), SHAPES[kind]) for k, (name, (module, kind)) in enumerate(WINDOWS.items())},
}
