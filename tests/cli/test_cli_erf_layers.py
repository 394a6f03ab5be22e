"""erf-map and erf-compute of other layers and positions, over the depth, and side by side."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_factory import SMALL_MODELS, make_checkpoint
from click.testing import CliRunner
from data_factory import image_folder
from PIL import Image

from cba_fast import erf
from cba_fast.cli.main import cli
from cba_fast.data import ImageDataset, erf_map_transform, open_image_set
from cba_fast.errors import InputError
from cba_fast.models import build_model, save_state_dict_file
from cba_fast.models.anatomy.layers import layers_of

SIZE = 64


@pytest.fixture
def options(here):
    """Options for a small RepLKNet and three images in the working directory."""
    image_folder(here / "datasets" / "birds", [f"a/{i}.jpg" for i in range(3)])
    make_checkpoint(Path("w.pth"), "replknet", SMALL_MODELS["replknet"], num_classes=5)
    return {
        "weights": "w.pth",
        "model_family": "replknet",
        "model": SMALL_MODELS["replknet"],
        "test_dataset": "birds",
        "input_size": SIZE,
        "num_workers": 0,
    }


def run(*args, code: int = 0, **options):
    given = [str(v) for name, value in options.items() for v in (f"--{name}", value)]
    result = CliRunner().invoke(cli, [*args, *given])
    if code == 0 and result.exception:
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def network():
    return build_model("replknet", model=SMALL_MODELS["replknet"], checkpoint="w.pth")


def images():
    data = ImageDataset(
        open_image_set("datasets/birds").records, SIZE, transform=erf_map_transform(SIZE)
    )
    return torch.stack([item["image"] for item in data])


def test_the_map_of_another_layer_and_point(options):
    where = {"layer": "stages.1.blocks.0", "point": "0.25,0.75"}
    out = run("erf-map", **options, num_images=3, output="m.npy", **where).output
    expected = erf.erf_map(network(), images(), layer=where["layer"], point=(0.25, 0.75)).map
    np.testing.assert_allclose(np.load("m.npy"), expected, rtol=1e-3, atol=1e-6 * expected.max())
    told = json.loads(Path("m.json").read_text())
    assert told["settings"]["map"]["layer"] == where["layer"]
    assert told["area_ratio_scale_free"] == []  # their squares are central, and this map is not
    assert told["pixels"]["0.5"] == int(erf_pixels(expected, 0.5))
    assert f"50% in {told['pixels']['0.5']} pixels" in out
    again = run("erf-map", **options, num_images=3, output="m.npy", **where)
    assert "the same run has ended before" in again.stderr


def erf_pixels(erf_map, share):
    values = np.sort(erf_map.ravel())[::-1].cumsum()
    return 1 + np.searchsorted(values, share * values[-1])


def test_sizes_of_a_layer(options):
    run("erf-compute", **options, layer="stages.1.blocks.0", point="0,1", output="s.npy")
    found = sorted(np.load("s.npy"))
    data = ImageDataset(open_image_set("datasets/birds").records, SIZE)
    x = torch.stack([item["image"] for item in data])
    expected = sorted(erf.erf_sizes(network(), x, layer="stages.1.blocks.0", point=(0, 1)))
    np.testing.assert_allclose(found, expected, atol=2)


def test_a_curve_over_the_depth_against_random_weights(options):
    out = run(
        "erf-map", **options, num_images=2, layers="all", compare="random", output="d.npy"
    ).output
    names = layers_of(network(), images())
    told = json.loads(Path("d.json").read_text())
    assert [each["layer"] for each in told["layers"]] == names
    maps = np.load("d.npy")
    assert maps.shape == (len(names), SIZE, SIZE)
    alone = erf.erf_map(network(), images()[:2], layer=names[3]).map
    np.testing.assert_allclose(maps[3], alone, rtol=1e-3, atol=1e-6 * alone.max())
    assert told["layers"][3]["pixels"]["0.2"] == int(erf_pixels(maps[3], 0.2))
    assert all(name in out for name in names)
    other = np.load("d_random.npy")
    assert other.shape == maps.shape
    assert not np.allclose(other[-1] / other[-1].max(), maps[-1] / maps[-1].max(), atol=0.1)
    assert Image.open("d.png").size[0] > 500
    again = run("erf-map", **options, num_images=2, layers="all", compare="random", output="d.npy")
    assert all(name in again.output for name in names)
    assert again.stderr.count("the same run has ended before") == 2


def test_layers_by_name_and_maps_side_by_side(options):
    run("erf-map", **options, num_images=1, layers="stages.0.blocks.0, stages.2.blocks.1")
    told = json.loads(Path("erf_map_replknet.json").read_text())
    assert [t["layer"] for t in told["layers"]] == ["stages.0.blocks.0", "stages.2.blocks.1"]
    model = network()  # the compared network is the one that the checkpoint records
    save_state_dict_file(model.state_dict(), "w.pth", model.description)
    options = {k: v for k, v in options.items() if k not in ("model", "model_family")}
    out = run("erf-map", **options, num_images=1, compare="random", output="c.npy").output
    assert "replknet_nano, random weights:" in out
    assert Image.open("c.png").size[0] > Image.open("c.png").size[1]
    others = f"random,{SMALL_MODELS['replknet']}"  # of the same name as the first one
    out = run("erf-map", **options, num_images=1, compare=others, output="e.npy").output
    assert np.array_equal(np.load("e_random.npy"), np.load("c_random.npy"))  # they have a seed
    assert "replknet_nano (3):" in out
    assert Image.open("e.png").size[0] > Image.open("c.png").size[0]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"layer": "stages.9"}, "no module named 'stages.9'; it has stages"),
        ({"layers": "stages.0,stages.9"}, "no module named 'stages.9'"),
        ({"layer": "77"}, "has no map 77"),
        ({"point": "90,1"}, "is not on the feature map, which is 2x2"),
    ],
)
def test_layers_and_points_that_are_not_there(options, wrong, message):
    with pytest.raises(InputError, match=message):
        run("erf-map", **options, num_images=1, **wrong)


@pytest.mark.parametrize("point", ["1", "a,b", "1.5,0.2", "-1,0"])
def test_points_that_cannot_be_read(options, point):
    result = run("erf-map", f"--point={point}", **options, code=2)
    assert "must be a row and a column, such as 3,5, or two shares" in result.stderr


def test_images_that_are_not_square(options):
    options["input_size"] = "64x96"
    out = run("erf-map", **options, num_images=2, output="m.npy")
    assert "input 64x96" in out.stderr
    assert "m.npy (2 images of 64x96)" in out.output
    x = torch.stack(
        [erf_map_transform((64, 96))(Image.open(f"datasets/birds/a/{i}.jpg")) for i in range(2)]
    )
    expected = erf.erf_map(network(), x).map
    assert expected.shape == (64, 96)
    np.testing.assert_allclose(np.load("m.npy"), expected, rtol=1e-3, atol=1e-6 * expected.max())
    run("erf-compute", **options, output="s.npy", num_samples=1, save_map="g.npy")
    assert np.load("g.npy").shape == (64, 96)
    vit = {"model": "test_vit", "test_dataset": "birds", "input_size": "96x64", "num_workers": 0}
    run("erf-map", **vit, num_images=1, layers="all", output="v.npy")
    assert np.load("v.npy").shape == (7, 96, 64)
    told = json.loads(Path("v.json").read_text())
    assert told["settings"]["map"]["input_size"] == "96x64"


def test_other_commands_take_them_too(options):
    options |= {"input_size": "64x96", "heatmap_output": "maps"}
    run("generate-heatmap", **options)
    assert np.load("np_maps/a/0.npy").shape == (64, 96)
    del options["heatmap_output"]
    result = run("erf-map", **{**options, "input_size": "0x9"}, code=2)
    assert "'0x9' is not a size of 1 to 8192 (N|HxW)" in result.stderr


def test_random_weights_are_the_same_in_each_run(options):
    vit = {"model": "test_vit", "test_dataset": "birds", "input_size": 64, "num_workers": 0}
    for output in ("a.npy", "b.npy"):
        run("erf-compute", **vit, num_samples=1, p="0.5", output=output)
    assert np.array_equal(np.load("a.npy"), np.load("b.npy"))
