# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Swap and time a convolution
#
# A network with large depthwise kernels gets the compiled convolution: in place, with its
# parameters, hooks and state dict. The times on this page are those of the machine that built it,
# perhaps a busy one; the README has measured ones.

# %%
import torch
from torch import nn

import cba_fast
from cba_fast.bench.contest import Contest
from cba_fast.models import inference_form

# %% [markdown]
# ## One layer
#
# The op computes what `conv2d(groups=C)` computes. Its result is compared first, and then timed:
# rivals take turns.

# %%
torch.manual_seed(0)
x = torch.randn(1, 64, 56, 56)
weight = torch.randn(64, 1, 31, 31)
expected = nn.functional.conv2d(x.double(), weight.double(), padding=15, groups=64)
y = cba_fast.ops.depthwise_conv2d(x, weight)
error = ((y - expected).norm() / expected.norm()).item()
print(f"relative error against float64: {error:.0e}")


def turns(functions):
    """Print the median time of each function."""
    for name, timing in Contest(functions, seconds=0.5).run().items():
        print(f"{name:22}{timing.in_ms()['median_ms']:8.2f} ms")


x_last, weight_last = (t.to(memory_format=torch.channels_last) for t in (x, weight))
turns(
    {
        "torch": lambda: nn.functional.conv2d(x, weight, padding=15, groups=64),
        "torch, channels_last": lambda: nn.functional.conv2d(
            x_last, weight_last, padding=15, groups=64
        ),
        "cba_fast": lambda: cba_fast.ops.depthwise_conv2d(x, weight),
    }
)

# %% [markdown]
# ## A network
#
# Any network will do; this one has kernels of 31x31, written with `nn.Conv2d` alone.


# %%
class Block(nn.Module):
    """A large depthwise kernel beside a small one, and a pointwise layer, as in RepLKNet."""

    def __init__(self, width, kernel):
        super().__init__()
        self.large = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width, bias=False)
        self.large_norm = nn.BatchNorm2d(width)
        self.small = nn.Conv2d(width, width, 5, padding=2, groups=width, bias=False)
        self.small_norm = nn.BatchNorm2d(width)
        self.pointwise = nn.Conv2d(width, width, 1)

    def forward(self, x):
        y = self.large_norm(self.large(x)) + self.small_norm(self.small(x))
        return x + self.pointwise(torch.relu(y))


blocks = [Block(64, 31) for _ in range(4)]
head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
model = nn.Sequential(nn.Conv2d(3, 64, 4, stride=4), *blocks, *head).eval()
images = torch.randn(2, 3, 160, 160)

# %% [markdown]
# `accelerate` says what it swapped, and what it left and why. `restore` would undo it.

# %%
with torch.no_grad():
    before = model(images)
    print(cba_fast.accelerate(model))
    print(f"largest change of a logit: {(model(images) - before).abs().max():.0e}")

# %% [markdown]
# It trains as before: gradients of images and weights come from the same kernels.

# %%
loss = nn.functional.cross_entropy(model.train()(images), torch.tensor([0, 1]))
loss.backward()
missing = [name for name, p in model.named_parameters() if p.grad is None]
print(f"parameters without a gradient: {missing}")

# %% [markdown]
# ## For inference
#
# `inference_form` returns a copy with merged branches and folded norms; its outputs differ by
# rounding. It takes any network.

# %%
fast = inference_form(model.eval())
print(fast.fold_report)
last = images.to(memory_format=torch.channels_last)
with torch.no_grad():
    print(f"largest change of a logit: {(fast(last) - model(images)).abs().max():.0e}")
    turns({"as trained": lambda: model(images), "inference form": lambda: fast(last)})

# %% [markdown]
# From the command line, `cba-fast bench --model convnext_base` times every depthwise layer of a
# network on your machine, and `cba-fast tune` finds the fastest kernels and uses them from then on.
