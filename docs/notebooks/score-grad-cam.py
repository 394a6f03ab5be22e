# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Score Grad-CAM maps
#
# A small data set is drawn, a small classifier is trained on its class labels alone, and its
# Grad-CAM maps are scored against boxes that the training never saw. With your own data, start at
# "Maps".

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import nn

from cba_fast.data import ImageDataset, load_boxes, open_image_set
from cba_fast.datasets.synth import generate
from cba_fast.wsol import BoxEvaluator, bootstrap, compare, heatmap

torch.manual_seed(0)
torch.set_num_threads(1)
root = Path(tempfile.mkdtemp()) / "animals"
generate(root, classes=4, images_per_class=42, test_per_class=12, size=96)


def batch(split):
    """Return the ids, images (N, 3, 64, 64) and labels of a split."""
    records = open_image_set(root, split=split).records
    items = ImageDataset(records, input_size=64)
    images = torch.stack([items[i]["image"] for i in range(len(items))])
    return [r.image_id for r in records], images, torch.tensor([r.label for r in records])


_, train_images, train_labels = batch("train")
image_ids, images, labels = batch("test")
train_images.shape, images.shape

# %% [markdown]
# ## A classifier
#
# Four convolutions and a linear layer, trained for some seconds.


# %%
def block(before, after, stride):
    conv = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(after), nn.ReLU())


features = nn.Sequential(block(3, 24, 2), block(24, 48, 2), block(48, 96, 1), block(96, 96, 1))
model = nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 4))
epochs = 10
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
steps = epochs * len(train_images) // 20
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=steps)
for epoch in range(epochs):
    for chosen in torch.randperm(len(train_images)).split(20):
        x = train_images[chosen]
        x = x.flip(-1) if epoch % 2 else x
        loss = nn.functional.cross_entropy(model(x), train_labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
model.eval()
top1 = (model(images).argmax(1) == labels).float().mean()
print(f"top-1 on the test images: {100 * top1:.0f} %")

# %% [markdown]
# ## Maps
#
# `heatmap` takes any classifier and any of 12 methods. Maps of other code are scored the same way:
# (N, H, W) in [0, 1].

# %%
maps = heatmap(model, images, method="grad-cam")
maps.shape, maps.dtype

# %% [markdown]
# ## Scores
#
# MaxBoxAcc and MaxBoxAccV2 with the counts of the official evaluator, at all thresholds at once.

# %%
boxes = load_boxes(cub_root=root)
evaluator = BoxEvaluator(boxes, cam_curve_interval=0.001)
evaluator.update(maps, image_ids)
result = evaluator.compute()
print(f"MaxBoxAcc {result.max_box_acc:.1f} %, MaxBoxAccV2 {result.max_box_acc_v2:.1f} %")
print(bootstrap(evaluator, num_resamples=500).find("max_box_acc_v2"))

# %% [markdown]
# Is Layer-CAM really better or worse on these images? Both are scored on the same resamples.

# %%
other = BoxEvaluator(boxes, cam_curve_interval=0.001)
other.update(heatmap(model, images, method="layer-cam"), image_ids)
difference = compare(evaluator, other, num_resamples=500).find("max_box_acc_v2")
print(f"Grad-CAM - Layer-CAM: {difference.estimate:.1f} points, ", end="")
print(f"95 % interval {difference.low:.1f} to {difference.high:.1f}, p = {difference.p_value:.2f}")

# %% [markdown]
# ## Which threshold?
#
# The accuracy at each threshold, and some maps with the true box (dashed).

# %%
figure, (curve, *axes) = plt.subplots(1, 4, figsize=(11, 2.8), layout="constrained")
curve.plot(result.thresholds, result.curve("largest", 0.5))
curve.set(xlabel="threshold", ylabel="images right, %", ylim=(0, 100))
for axis, i in zip(axes, (0, 15, 30), strict=True):
    axis.imshow(images[i].permute(1, 2, 0) / 2 + 0.5)
    axis.imshow(maps[i], alpha=0.5)
    x0, y0, x1, y1 = boxes.scaled(image_ids[i], (64, 64))[0]
    axis.add_patch(plt.Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, color="w", ls="--"))
    axis.set(xticks=[], yticks=[], title=image_ids[i].split("/")[0].split("_")[-1])
plt.show()
