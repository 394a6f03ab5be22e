"""erf-compute, erf-map, analysis-erf-vs-wsol and plot-erf-vs-wsol, on real small models."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_factory import SMALL_MODELS, make_checkpoint
from click.testing import CliRunner
from data_factory import image_folder, write_file
from PIL import Image

from cba_fast import erf
from cba_fast.cli.main import cli
from cba_fast.data import ImageDataset, open_image_set
from cba_fast.errors import CbaError, ImageError, InputError
from cba_fast.models import build_model
from cba_fast.resume import OtherRunError

SIZE = 64
NAMES = [f"{c}/{i}.jpg" for c in "ab" for i in range(4)]


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A working directory with the data set ``birds`` of 8 images."""
    monkeypatch.chdir(tmp_path)
    image_folder(tmp_path / "datasets" / "birds", NAMES)
    return tmp_path


def run(*args, code: int = 0):
    result = CliRunner().invoke(cli, [str(a) for a in args])
    if code == 0 and result.exception:
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def erf_args(family: str = "replknet", command: str = "erf-compute", **options):
    weights = Path("w.pth")
    if not weights.exists():
        make_checkpoint(weights, family, SMALL_MODELS[family], num_classes=5)
    options = {
        "model_family": family,
        "fine_tuned_weight_name": weights,
        "model": SMALL_MODELS[family],
        "test_dataset": "birds",
        "input_size": SIZE,
        "num_workers": 0,
        **options,
    }
    return [command, *(x for k, v in options.items() for x in (f"--{k}", v))]


@pytest.mark.parametrize("family", sorted(SMALL_MODELS))
def test_sizes_of_every_family_equal_the_study_script(work, family):
    result = run(*erf_args(family, num_samples=3, seed=4))
    found = np.load(f"erf_sizes_{family}.npy")
    assert found.dtype == np.float32
    assert found.shape == (3,)
    assert f"mean {found.mean():.2f}, std {found.std():.2f}" in result.output
    assert f"erf_sizes_{family}.npy" in result.output.splitlines()[-1]
    model = build_model(family, model=SMALL_MODELS[family], checkpoint="w.pth")
    data = ImageDataset(open_image_set("datasets/birds").records, input_size=SIZE)
    indices = np.arange(8)
    np.random.RandomState(4).shuffle(indices)
    for size, i in zip(found, indices):
        x = data[i]["image"][None].requires_grad_(True)
        prob = model(x).softmax(1)
        if family in ("convnext", "slak_flex"):
            prob = prob.softmax(1)
        prob.max().backward()
        values = x.grad.abs().mean(1).flatten().double().sort(descending=True).values.cumsum(0)
        expected = 1 + torch.searchsorted(values, 0.2 * values[-1]).item()
        # The command's model has merged branches and another memory format: equal but for rounding.
        assert abs(size - expected) <= max(1, 0.01 * expected)


def test_several_p_and_a_named_output(work):
    result = run(*erf_args(num_samples=2, p="0.2,0.5", output="out/e"), "--p", 1)
    found = np.load("out/e.npy")
    assert found.shape == (2, 3)
    assert (np.diff(found, axis=1) > 0).all()
    assert [line.split(":")[0] for line in result.stdout.splitlines()[:3]] == [
        "ERF size (p = 0.2)",
        "ERF size (p = 0.5)",
        "ERF size (p = 1)",
    ]
    assert sorted(p.name for p in Path("out").iterdir()) == [".e.npy.run.json", "e.npy"]


def test_more_samples_than_images_takes_all_with_a_warning(work):
    result = run(*erf_args())
    assert len(np.load("erf_sizes_replknet.npy")) == 8
    assert "200 samples asked for, the set has 8" in result.stderr


def test_unreadable_images_are_reported_or_end_a_strict_run(work):
    write_file(work / "datasets/birds/a/2.jpg", b"not an image")
    result = run(*erf_args())
    assert len(np.load("erf_sizes_replknet.npy")) == 7
    assert "1 image could not be used" in result.stderr
    assert "a/2.jpg" in result.stderr
    with pytest.raises(ImageError, match=r"a/2\.jpg"):
        run(*erf_args(), "--strict")  # what is there is not strict
    Path("erf_sizes_replknet.npy").unlink()
    with pytest.raises(ImageError, match=r"a/2\.jpg"):
        run(*erf_args(), "--strict")
    assert not Path("erf_sizes_replknet.npy").exists()


def test_no_readable_image_is_an_error(work):
    for name in NAMES:
        write_file(work / "datasets/birds" / name, b"not an image")
    with pytest.raises(ImageError, match="none of the 8 images"):
        run(*erf_args())
    assert not Path("erf_sizes_replknet.npy").exists()


def test_map_with_area_ratios_and_picture(work):
    args = {"num_images": 3, "input_size": 96, "output": "m", "save_fig": "drawn.png"}
    result = run(*erf_args(command="erf-map", **args))
    found = np.load("m.npy")
    assert found.shape == (96, 96)
    assert found.dtype == np.float64
    assert found.max() > 0
    side = erf.area_ratio(found, (0.5,))[0].side
    assert f"50% of the contribution in {side**2 / 96**2:.2%} of the area" in result.output
    assert f"{side}; published, after log10" in result.output
    free = erf.scale_free_area_ratio(found, (0.5,))[0]
    assert f"{free.ratio:.2%} of the area (side {free.side}; scale-free)" in result.output
    assert "m.npy (3 images of 96x96), m.json" in result.output
    assert Image.open("drawn.png").size[0] > 500
    told = json.loads(Path("m.json").read_text())
    assert (told["definition"], told["num_images"], told["size"]) == ("replknet", 3, [96, 96])
    assert told["shape"] == erf.erf_shape(found).as_dict()
    assert told["area_ratio_log10_published"][2]["side"] == side
    assert told["area_ratio_scale_free"][2]["ratio"] == free.ratio
    assert told["settings"]["family"] == "replknet"


def test_the_map_has_default_names_and_the_side_of_its_protocol(work):
    defaults = {p.name: p.default for p in cli.get_command(None, "erf-map").params}
    assert (defaults["num_images"], defaults["input_size"]) == (50, 1024)
    out = run(*erf_args(command="erf-map", num_images=1)).output
    assert f"erf_map_replknet.npy (1 image of {SIZE}x{SIZE})" in out
    assert Path("erf_map_replknet.png").exists()
    assert not Path("erf_sizes_replknet.npy").exists()
    assert out.splitlines()[-1].startswith("ERF map: erf_map_replknet.npy")


def test_earlier_spellings_of_the_map_give_the_same_file(work):
    run(*erf_args(command="erf-map", num_images=2, output="m.npy"))
    done = run(*erf_args(num_samples=1, map="both.npy", map_images=2, map_fig="b.pdf"))
    assert "--map is a command of its own now: cba-fast erf-map" in done.stderr
    assert Path("b.pdf").exists()
    done = run(*erf_args(definition="replknet", num_samples=2, save_map="alone.npy"))
    assert "replknet is now: cba-fast erf-map --model_family" in done.stderr
    assert "--num_images 2 --output alone.npy" in done.stderr
    for name in ("both.npy", "alone.npy"):
        assert Path(name).read_bytes() == Path("m.npy").read_bytes()


def test_the_map_follows_an_input_size_that_is_given(work, monkeypatch):
    monkeypatch.setattr("cba_fast.runs.settings.ErfMapConfig.input_size", 80)
    sizes = {"num_samples": 1, "map": "m.npy", "map_images": 1}
    given = erf_args(**sizes, input_size=SIZE)
    assert f"m.npy (1 image of {SIZE}x{SIZE})" in run(*given).output
    assert np.load("m.npy").shape == (SIZE, SIZE)
    assert "(1 image of 72x72)" in run(*given, "--map_input_size", 72, "--overwrite").output
    at = given.index("--input_size")
    absent = [*given[:at], *given[at + 2 :], "--overwrite"]
    assert "m.npy (1 image of 80x80)" in run(*absent).output


def test_the_settings_line_has_the_size_at_which_the_map_is_measured(work):
    args = erf_args(definition="replknet", num_samples=1)
    at = args.index("--input_size")
    told = run(*args[:at], *args[at + 2 :], "--input_size", 72).output
    line = next(line for line in told.splitlines() if line.startswith("Model"))
    assert ", input 72" in line
    assert "(1 image of 72x72)" in told


def test_the_map_of_the_study_is_the_mean_gradient(work):
    run(*erf_args(num_samples=3, seed=4, save_map="g", save_fig="g.pdf", score="logit"))
    found = np.load("g.npy")
    model = build_model("replknet", model=SMALL_MODELS["replknet"], checkpoint="w.pth")
    data = ImageDataset(open_image_set("datasets/birds").records, input_size=SIZE)
    indices = erf.sample_indices(8, 3, 4)
    g = [erf.input_gradient(model, data[i]["image"][None], score="logit").abs() for i in indices]
    expected = torch.cat(g).mean((0, 1)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * expected.max())
    told = json.loads(Path("g.json").read_text())
    assert (told["definition"], told["num_images"]) == ("study", 3)
    assert told["settings"]["score"] == "logit"
    assert Path("g.pdf").read_bytes().startswith(b"%PDF")


def test_files_do_not_depend_on_the_checkpoint_level(work):
    run(*erf_args(num_samples=2))
    run(*erf_args(command="erf-map", num_images=2, output="m.npy"))
    for level in ("none", "block", "stage"):
        run(*erf_args(num_samples=2, checkpoint=level, output="again.npy"))
        args = {"num_images": 2, "checkpoint": level, "output": "again_m.npy"}
        run(*erf_args(command="erf-map", **args))
        assert Path("again.npy").read_bytes() == Path("erf_sizes_replknet.npy").read_bytes()
        assert Path("again_m.npy").read_bytes() == Path("m.npy").read_bytes()


KILL = """
import os, sys
from cba_fast.erf import Partial
from cba_fast.files import atomic_path
save = Partial.save
def save_and_die(self, arrays, **kwargs):
    save(self, arrays, force=True)
    if len(arrays()["visited"]) == 4:
        with atomic_path(self.path) as tmp:  # while the next part is written
            tmp.write_bytes(b"half")
            os.kill(os.getpid(), 9)
Partial.save = save_and_die
from cba_fast.cli.main import main
main()
"""
RUN = {"map_images": 6, "map_input_size": 64, "batch_size": 2}


@pytest.fixture
def whole(work):
    """The files of an uninterrupted run over a set with an unreadable image."""
    write_file(work / "datasets/birds/a/2.jpg", b"not an image")
    run(*erf_args(**RUN, output="whole/sizes.npy", map="whole/map.npy"))
    return Path("whole")


def check_continued(whole: Path, args: list) -> None:
    result = run(*args)
    assert result.stderr.count("continued after 4 images") == 1
    assert result.stderr.count("a/2.jpg: cannot read") == 2
    for name in ("sizes.npy", "map.npy", ".sizes.npy.run.json", ".map.npy.run.json"):
        assert Path(name).read_bytes() == (whole / name).read_bytes()
    assert sorted(p.name for p in Path().glob(".*")) == [".map.npy.run.json", ".sizes.npy.run.json"]


def test_a_killed_command_continues_to_identical_files(whole):
    args = erf_args(**RUN, output="sizes.npy", map="map.npy")
    done = subprocess.run([sys.executable, "-c", KILL, *map(str, args)], check=False)
    assert done.returncode == -9
    assert Path(".sizes.npy.partial.npz").exists()
    assert len(list(Path().glob(".tmp-*"))) == 1
    assert not Path("sizes.npy").exists()
    check_continued(whole, args)


def test_an_interrupted_map_continues_to_identical_files(whole, monkeypatch):
    save = erf.Partial.save

    def save_and_stop(self, arrays, force=False):
        save(self, arrays, force=force)
        if not force and self.path.name.startswith(".map") and len(arrays()["visited"]) == 4:
            raise KeyboardInterrupt

    args = erf_args(**RUN, output="sizes.npy", map="map.npy")
    with monkeypatch.context() as m:
        m.setattr(erf.Partial, "save", save_and_stop)
        result = run(*args, code=130)
    assert "the same command goes on" in result.stderr
    assert Path("sizes.npy").exists()
    assert not Path("map.npy").exists()
    check_continued(whole, args)


def test_a_finished_run_is_read_again_and_another_refused(work, monkeypatch):
    write_file(work / "datasets/birds/a/2.jpg", b"not an image")
    args = erf_args(num_samples=8, save_map="g.npy")
    first = run(*args)
    kept = Path("erf_sizes_replknet.npy").stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(
            "cba_fast.runs.erf.sizes.measure_sizes", lambda *a, **k: pytest.fail("measured")
        )
        again = run(*args, "--num_workers", 1)
        assert "a/2.jpg: cannot read" in again.stderr
        assert "erf_sizes_replknet.npy was there" in again.stderr
        assert again.stdout.rsplit("(", 1)[0] == first.stdout.rsplit("(", 1)[0]
        for extra, text in (
            (["--score", "logit"], "sizes.score was 'prob', is 'logit'"),
            (["--seed", 1, "--num_samples", 7], "sizes.num_samples was 8, is 7; sizes.seed was 0"),
        ):
            with pytest.raises(OtherRunError, match=text):
                run(*args, *extra)
        make_checkpoint(Path("w.pth"), "replknet", SMALL_MODELS["replknet"], num_classes=5, seed=1)
        with pytest.raises(OtherRunError, match=r"the weights w\.pth are other bytes"):
            run(*args)
        image_folder(work / "datasets" / "birds", NAMES[::-1])  # others under the same names
        with pytest.raises(OtherRunError, match="the images are not those that were used"):
            run(*args)
    assert Path("erf_sizes_replknet.npy").stat().st_mtime_ns == kept
    done = run(*args, "--no_resume")
    assert "--no_resume is called --overwrite now" in done.stderr
    assert "a/2.jpg" not in done.stderr
    assert len(np.load("erf_sizes_replknet.npy")) == 8


def test_a_file_of_somebody_else_is_not_replaced(work):
    Path("erf_map_replknet.json").write_text("mine")
    for extra in ([], ["--overwrite"]):
        with pytest.raises(InputError, match=r"erf_map_replknet\.json exists, and no record"):
            run(*erf_args(command="erf-map", num_images=2), *extra)
    assert Path("erf_map_replknet.json").read_text() == "mine"
    assert not Path("erf_map_replknet.npy").exists()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--p", "0"], "not in"),
        (["--p", "0.2,x"], "'x' is not a number"),
        (["--p", "0.2,0.2"], "given twice"),
        (["--num_samples", "0"], "num_samples"),
        (["--seed", "-1"], "seed"),
        (["--score", "probs"], "probs"),
        (["--map_images", "2"], "--map_images and --map_input_size are for `erf-map`"),
        (["--definition", "replknet", "--p", "0.3"], "No such option"),
    ],
)
def test_bad_options_are_usage_errors(work, extra, message):
    assert message in run(*erf_args(), *extra, code=2).output


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--map", "erf_sizes_replknet.npy"], "same file"),
        (["--save_fig", "a.png"], "is the picture of --save_map, which is not given"),
        (["--save_map", "a", "--map", "a.npy"], "`save_map` and `map` name the same file"),
        (["--map", "a", "--map_fig", "a.xyz"], r"a\.xyz: unknown picture format"),
        (["--precision", "fp16"], "underflow"),
        (["--test_dataset", "fish"], "fish"),
    ],
)
def test_bad_combinations_are_input_errors(work, extra, message):
    with pytest.raises(InputError, match=message):
        run(*erf_args(), *extra)


def test_weights_are_required(work):
    assert "give --weights FILE, or --model" in run("erf-compute", code=2).output


@pytest.fixture
def three_models(work):
    """Size files of three models with means 100, 200, 300."""
    for i in (1, 2, 3):
        np.save(f"e{i}.npy", np.array([100 * i - 10, 100 * i + 10], dtype=np.float32))
    return [
        {"name": f"m{i}", "erf_path": f"e{i}.npy", "maxboxacc": s}
        for i, s in [(1, 0.8), (2, 0.7), (3, 75)]
    ]


def test_analysis_prints_and_draws(three_models):
    Path("models.json").write_text(json.dumps(three_models))
    out = run("analysis-erf-vs-wsol", "--config", "models.json", "--save_fig", "a.png").output
    assert "m1  ERF mean 100.00, std 10.00 (2 images)  MaxBoxAcc 80.00%" in out
    assert "Pearson correlation (ERF mean, MaxBoxAcc): -0.5000" in out
    assert "MaxBoxAcc = -0.025 * ERF mean + 80" in out
    assert "R2: 0.2500" in out
    assert out.splitlines()[-1].endswith("a.png")
    assert Image.open("a.png").size == (1400, 1000)
    args = ["--config", "models.json", "--save_fig", "a.pdf", "--tables", "t"]
    out = run("analysis-erf-vs-wsol", *args)
    assert Path("a.pdf").read_bytes().startswith(b"%PDF")
    assert "Tables       : t" in out.output
    assert Path("t/erf_vs_wsol.tex").read_text().count(r" \\") == 1 + len(three_models)


def test_analysis_of_one_model_draws_without_a_fit(three_models):
    Path("models.json").write_text(json.dumps(three_models[:1]))
    out = run("analysis-erf-vs-wsol", "--config", "models.json", "--save-fig", "a.png").output
    assert "One model only" in out
    assert Path("a.png").exists()


def test_plot_reads_the_csv(three_models):
    rows = "".join(f"m{i},{f},e{i}.npy,0.{i}\n" for i, f in [(1, "replknet"), (2, "slak")])
    Path("p.csv").write_text("model_name,family,erf_path,wsol\n" + rows)
    assert "2 points: erf_vs_wsol_scatter.png" in run("plot-erf-vs-wsol", "--csv", "p.csv").output
    assert Image.open("erf_vs_wsol_scatter.png").size == (1400, 1000)
    for name in ("--save_fig", "--save"):  # today's name and the study's
        assert "2 points: p.png" in run("plot-erf-vs-wsol", "--csv", "p.csv", name, "p.png").output
        Path("p.png").unlink()
    run("plot-erf-vs-wsol", "--csv", "p.csv", "--save_fig", "p.pdf")
    assert Path("p.pdf").read_bytes().startswith(b"%PDF")


def test_errors_of_the_plots_leave_nothing(three_models):
    header = "model_name,family,erf_path,wsol\n"
    for text, message in [
        (header, "no points"),
        (header + "a,f,none.npy,0.5\n", r"none\.npy: no such file"),
        (header + "a,f,e1.npy\n", r"p\.csv, line 2"),
    ]:
        Path("p.csv").write_text(text)
        with pytest.raises(CbaError, match=message):
            run("plot-erf-vs-wsol", "--csv", "p.csv")
    assert not Path("erf_vs_wsol_scatter.png").exists()


def test_help_and_analysis_import_no_torch(three_models):
    Path("models.json").write_text(json.dumps(three_models))
    code = (
        "import sys\nfrom cba_fast.cli.main import cli\n"
        "cli(sys.argv[1:], standalone_mode=False)\nassert 'torch' not in sys.modules"
    )
    for args in (["erf-compute", "--help"], ["analysis-erf-vs-wsol", "--config", "models.json"]):
        subprocess.run([sys.executable, "-c", code, *args], check=True, stdout=subprocess.DEVNULL)
