"""Draw the picture of the README from what the demo left: image, heatmap, boxes, ERF.

cba-fast demo && python docs/pictures/overview.py cba_fast_demo
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from cba_fast.data import load_boxes, open_image_set
from cba_fast.ops import box_sweep
from cba_fast.wsol import BoxEvaluator

NETWORKS = {"replknet": "RepLKNet", "convnext": "ConvNeXt"}
IMAGES = (8, 17)  # places among the images with maps, for the first and the second network
OUTPUT = Path(__file__).with_name("overview.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("demo", type=Path, help="output folder of `cba-fast demo`")
    parser.add_argument("--images", type=int, nargs=2, default=IMAGES)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    args = parser.parse_args()
    (cub,) = args.demo.glob("data_*/CUB_200_2011")
    figure, axes = plt.subplots(2, 4, figsize=(9, 4.6), layout="constrained")
    for row, (network, place) in zip(axes, zip(NETWORKS, args.images, strict=True), strict=True):
        folder = args.demo / f"np_heatmap_{network}_cam"
        shown = [r for r in open_image_set(cub).records if (folder / r.map_name).exists()]
        boxes = load_boxes(cub_root=cub, image_ids=[r.image_id for r in shown])
        maps = [np.load(folder / r.map_name) for r in shown]
        evaluator = BoxEvaluator(boxes, contours="largest")
        evaluator.update(maps, boxes.image_ids)
        threshold = evaluator.compute().modes["largest"].optimal_threshold[1]  # of IoU 0.5
        record, scoremap = shown[place], maps[place]
        image = Image.open(record.path).resize(scoremap.shape[::-1])
        predicted = box_sweep(scoremap[None], [threshold])[0, 0].tolist()
        truth = boxes.scaled(record.image_id, scoremap.shape[::-1])[0]
        draw_row(row, image, scoremap, predicted, truth)
        erf = np.load(args.demo / f"erf_map_{network}.npy")
        row[3].imshow(np.sqrt(erf / erf.max()), cmap="viridis")
        row[0].set_ylabel(NETWORKS[network], fontsize=12)
    for axis, title in zip(axes[0], ("image", "CAM", "boxes", "ERF"), strict=True):
        axis.set_title(title, fontsize=12)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    figure.legend(loc="outside lower center", ncols=2, handles=axes[0, 2].patches, frameon=False)
    figure.savefig(args.output, dpi=90, pil_kwargs={"optimize": True})
    Image.open(args.output).convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE).save(
        args.output, optimize=True
    )
    print(f"{args.output}: {args.output.stat().st_size / 1e3:.0f} kB")


def draw_row(row, image, scoremap, predicted, truth) -> None:
    """Draw an image, its map over it and the predicted and the true box; the ERF comes last."""
    row[0].imshow(image)
    row[1].imshow(image)
    row[1].imshow(scoremap, cmap="viridis", alpha=0.65)
    row[2].imshow(image)
    for box, style, label in ((truth, "--", "true box"), (predicted, "-", "predicted box")):
        x0, y0, x1, y1 = box
        color = "#00c8ff" if style == "--" else "#ff9f1c"
        frame = plt.Rectangle(
            (x0, y0), x1 - x0, y1 - y0, fill=False, lw=2, ls=style, color=color, label=label
        )
        row[2].add_patch(frame)


if __name__ == "__main__":
    main()
