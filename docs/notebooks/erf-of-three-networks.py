# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # The ERF of three networks
#
# How much does each input pixel add to the centre of the last feature map? Small variants of three
# families are measured with random weights, so that nothing is downloaded. With `pretrained=True`,
# other names of timm's, or your own networks the same lines work.

# %%
import matplotlib.pyplot as plt
import numpy as np
import timm
import torch

import cba_fast.models  # registers RepLKNet, SLaK and slak_flex with timm
from cba_fast.erf import erf_depth, erf_map, erf_shape, erf_sizes, scale_free_area_ratio

# %%
torch.manual_seed(0)
images = torch.randn(4, 3, 128, 128)
names = ("convnext_atto", "replknet_nano", "slak_nano")
models = {name: timm.create_model(name, num_classes=10).eval() for name in names}
for model in models.values():
    for module in model.modules():
        if getattr(module, "gamma", None) is not None:
            module.gamma.data.fill_(0.3)  # a new layer scale of 1e-6 would hide the blocks

# %% [markdown]
# ## ERF maps and their shapes
#
# The map of RepLKNet's script, of any network; `layer=` and `point=` choose another place.

# %%
maps = {name: erf_map(model, images).map for name, model in models.items()}
print(f"{'':15}{'sigma':>7}{'roundness':>11}{'cross':>7}{'area with 50 %':>16}")
for name, found in maps.items():
    shape = erf_shape(found)
    ratio = scale_free_area_ratio(found, [0.5])[0].ratio
    sigma, cross = shape.sigma_major, shape.cross_share
    print(f"{name:15}{sigma:7.1f}{shape.roundness:11.2f}{cross:7.2f}{ratio:16.3f}")

# %%
figure, axes = plt.subplots(1, 3, figsize=(9, 3.2), layout="constrained")
for axis, (name, found) in zip(axes, maps.items(), strict=True):
    picture = axis.imshow(np.log10(found / found.max() + 1e-4), vmin=-4, vmax=0)
    axis.set(title=name, xticks=[], yticks=[])
figure.colorbar(picture, ax=axes, label="log10(share of the maximum)")
plt.show()

# %% [markdown]
# ## ERF sizes
#
# The other quantity of that name: the fewest pixels that hold a share p of the gradient of the
# top-1 score, image by image.

# %%
for name, model in models.items():
    small, large = erf_sizes(model, images, p=[0.2, 0.5], score="logit").mean(axis=0)
    print(f"{name:15} 20 %: {small:6.0f} pixels, 50 %: {large:6.0f} pixels")

# %% [markdown]
# ## Over the depth
#
# One forward pass gives the maps of all layers.

# %%
figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
for name, model in models.items():
    sigmas = [erf_shape(each.map).sigma_major for each in erf_depth(model, images).values()]
    axis.plot(np.linspace(0, 1, len(sigmas)), sigmas, marker=".", label=name)
axis.set(xlabel="share of the depth", ylabel="standard deviation, pixels")
axis.legend()
plt.show()
