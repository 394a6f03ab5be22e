"""Networks in the class structure of other people's code, written anew for the tests."""

import torch
import torch.nn.functional as F
from torch import nn


def randomized(model):
    """Give every norm statistics and an affine map that are far from the identity."""
    g = torch.Generator().manual_seed(0)

    def uniform(like, low, high):
        return low + (high - low) * torch.rand(like.shape, generator=g, dtype=like.dtype)

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
                module.weight.copy_(uniform(module.weight, 0.5, 1.5))
                module.bias.copy_(uniform(module.bias, -0.5, 0.5))
            if getattr(module, "running_mean", None) is not None:
                module.running_mean.copy_(uniform(module.running_mean, -0.3, 0.3))
                module.running_var.copy_(uniform(module.running_var, 0.5, 2))
    return model.eval()


def conv_bn(inside, outside, kernel, groups=1, stride=1, relu=False):
    layers = nn.Sequential()
    padding = [k // 2 for k in kernel] if isinstance(kernel, tuple) else kernel // 2
    conv = nn.Conv2d(inside, outside, kernel, stride, padding, groups=groups, bias=False)
    layers.add_module("conv", conv)
    layers.add_module("bn", nn.BatchNorm2d(outside))
    if relu:
        layers.add_module("nonlinear", nn.ReLU())
    return layers


class ReparamLargeKernelConv(nn.Module):
    """RepLKNet's and SLaK's: a large kernel, or two strips, and a small one, each with its norm."""

    def __init__(self, channels, kernel, small, strips=False):
        super().__init__()
        self.kernel, self.strips = kernel, strips
        if strips:
            self.LoRA1 = conv_bn(channels, channels, (kernel, small), channels)
            self.LoRA2 = conv_bn(channels, channels, (small, kernel), channels)
        else:
            self.lkb_origin = conv_bn(channels, channels, kernel, channels)
        self.small_conv = conv_bn(channels, channels, small, channels)

    def forward(self, inputs):
        if hasattr(self, "lkb_reparam"):
            return self.lkb_reparam(inputs)
        out = self.LoRA1(inputs) + self.LoRA2(inputs) if self.strips else self.lkb_origin(inputs)
        if hasattr(self, "small_conv"):
            out += self.small_conv(inputs)
        return out


class RepLKBlock(nn.Module):
    def __init__(self, channels, kernel, strips):
        super().__init__()
        self.prelkb_bn = nn.BatchNorm2d(channels)
        self.pw1 = conv_bn(channels, channels, 1, relu=True)
        self.large_kernel = ReparamLargeKernelConv(channels, kernel, 5, strips)
        self.lk_nonlinear = nn.ReLU()
        self.pw2 = conv_bn(channels, channels, 1)
        self.drop_path = nn.Dropout(0.1)

    def forward(self, x):
        out = self.prelkb_bn(x)
        out = self.lk_nonlinear(self.large_kernel(self.pw1(out)))
        return x + self.drop_path(self.pw2(out))


class RepLKNet(nn.Module):
    """A stem, blocks and a last norm; its forward checks its input, which no trace can follow."""

    def __init__(self, channels=8, kernel=13, blocks=2, strips=False):
        super().__init__()
        self.stem = conv_bn(3, channels, 3, stride=2, relu=True)
        self.blocks = nn.ModuleList(RepLKBlock(channels, kernel, strips) for _ in range(blocks))
        self.norm = nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels, 5)

    def forward_features(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward(self, x):
        if x.shape[1] != 3 or x.mean().isnan():
            raise ValueError("not an image")
        return self.head(self.forward_features(x).mean((2, 3)))


class ToChannelsFirst(nn.Module):
    def forward(self, x):
        return x.permute(0, 3, 1, 2)


class DilatedReparamBlock(nn.Module):
    """UniRepLKNet's: a large kernel and dilated ones, whose norms are kept by name."""

    def __init__(self, channels, kernel, sizes, dilations):
        super().__init__()
        self.lk_origin = nn.Conv2d(
            channels, channels, kernel, padding=kernel // 2, groups=channels, bias=False
        )
        self.origin_bn = nn.BatchNorm2d(channels)
        self.pairs = list(zip(sizes, dilations))
        for k, d in self.pairs:
            conv = nn.Conv2d(
                channels,
                channels,
                k,
                padding=(k - 1) * d // 2,
                dilation=d,
                groups=channels,
                bias=False,
            )
            self.add_module(f"dil_conv_k{k}_{d}", conv)
            self.add_module(f"dil_bn_k{k}_{d}", nn.BatchNorm2d(channels))

    def forward(self, x):
        if not hasattr(self, "origin_bn"):
            return self.lk_origin(x)
        out = self.origin_bn(self.lk_origin(x))
        for k, d in self.pairs:
            conv = self.__getattr__(f"dil_conv_k{k}_{d}")
            out = out + self.__getattr__(f"dil_bn_k{k}_{d}")(conv(x))
        return out


class UniRepLKBlock(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.dwconv = DilatedReparamBlock(channels, 13, (5, 3, 3), (1, 2, 3))
        self.norm = nn.BatchNorm2d(channels)
        self.gate = nn.Conv2d(channels, channels, 1)
        self.pwconv1 = nn.Linear(channels, 2 * channels)
        self.pwconv2 = nn.Sequential(
            nn.Linear(2 * channels, channels, bias=False),
            ToChannelsFirst(),
            nn.BatchNorm2d(channels),
        )
        self.gamma = nn.Parameter(torch.full((channels,), 1e-6))

    def forward(self, inputs):
        y = self.norm(self.dwconv(inputs))
        y = y * self.gate(y.mean((2, 3), keepdim=True)).sigmoid()
        y = self.pwconv2(F.gelu(self.pwconv1(y.permute(0, 2, 3, 1))))
        return self.gamma.view(1, -1, 1, 1) * y + inputs


class UniRepLKNet(nn.Module):
    def __init__(self, channels=8):
        super().__init__()
        self.downsample = nn.Sequential(nn.Conv2d(3, channels, 3, 2, 1), nn.BatchNorm2d(channels))
        self.stage = nn.Sequential(UniRepLKBlock(channels), UniRepLKBlock(channels))
        self.head = nn.Linear(channels, 5)

    def forward(self, x):
        return self.head(self.stage(self.downsample(x)).mean((2, 3)))


class RepVGGBlock(nn.Module):
    """Dense kernels and a norm of the input itself, summed inside a larger forward."""

    def __init__(self, inside, outside):
        super().__init__()
        self.rbr_identity = nn.BatchNorm2d(inside) if inside == outside else None
        self.rbr_dense = conv_bn(inside, outside, 3)
        self.rbr_1x1 = conv_bn(inside, outside, 1)

    def forward(self, inputs):
        out = 0 if self.rbr_identity is None else self.rbr_identity(inputs)
        return F.relu(self.rbr_dense(inputs) + self.rbr_1x1(inputs) + out)
