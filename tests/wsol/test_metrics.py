"""The torchmetrics classes give the evaluators' scores after every way that states travel."""

import pickle

import cv2
import numpy as np
import pytest
import torch
from mask_factory import mask_dataset

from cba_fast.data import load_masks
from cba_fast.data.boxes import Boxes
from cba_fast.errors import InputError
from cba_fast.wsol import BoxEvaluator, PixelEvaluator

metrics = pytest.importorskip("cba_fast.wsol.metrics", reason="torchmetrics is not installed")
from torchmetrics import MetricCollection  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::cba_fast.errors.CbaWarning")  # few of the images

N, SIDE = 11, 224
NAMES = ("MaxBoxAcc", "MaxBoxAccV2", "PxAP")


def make_maps():
    rng = np.random.default_rng(4)
    return np.stack([cv2.resize(rng.random((5, 5)) ** 2, (SIDE, SIDE)) for _ in range(N)])


def make_boxes(ids):
    rng = np.random.default_rng(5)
    boxes = {}
    for i in ids:
        x, y = rng.integers(0, 15, 2)
        boxes[i] = np.array([[x, y, x + rng.integers(8, 25), y + rng.integers(8, 25)]])
    return Boxes(tuple(ids), boxes, dict.fromkeys(ids, (40, 40)), None)


def setup(name, root):
    """Return a metric, the ids, the maps, and the evaluator's score of all of them."""
    meta, masks, ids = mask_dataset(root, N)
    maps = make_maps()
    truth = load_masks(meta, masks) if name == "PxAP" else make_boxes(ids)
    evaluator = (PixelEvaluator if name == "PxAP" else BoxEvaluator)(truth)
    evaluator.update(maps, ids)
    figure = {"MaxBoxAcc": "max_box_acc", "MaxBoxAccV2": "max_box_acc_v2", "PxAP": "px_ap"}
    expected = getattr(evaluator.compute(), figure[name])
    return getattr(metrics, name)(truth), ids, maps, expected


@pytest.mark.parametrize("name", NAMES)
def test_batches_clone_pickle_and_reset(tmp_path, name):
    metric, ids, maps, expected = setup(name, tmp_path)
    assert 0 < expected < 100
    first = metric(torch.from_numpy(maps[:4]), ids[:4])  # forward returns the batch's own score
    assert first.dtype == torch.float64
    copies = [metric.clone(), pickle.loads(pickle.dumps(metric))]
    for one in (metric, *copies):
        assert one.compute() == first
        one.update(maps[4:], ids[4:])
        one.update(maps[3:5], ids[3:5])  # the same images again count once
        assert one.compute().item() == expected
    metric.reset()
    with (
        pytest.warns(UserWarning, match="before the ``update``"),
        pytest.raises(InputError, match="no image was evaluated"),
    ):
        metric.compute()
    metric.update(maps[:0], [])
    with pytest.raises(InputError, match="no image was evaluated"):
        metric.compute()
    metric.update(maps, ids)
    assert metric.compute().item() == expected
    metric.update(1 - maps, ids)
    with pytest.raises(InputError, match=r"image 'c/\d+.jpg' was added twice, with different"):
        metric.compute()


def test_metrics_of_a_collection_stay_apart(tmp_path):
    """In the first batch, of one contour each, both modes find the same boxes."""
    ids, blobs = [f"{n}.jpg" for n in range(3)], np.zeros((3, 40, 40))
    blobs[0, 5:25, 5:25] = 1
    blobs[1:, 2:38, 2:38] = 0.3  # below the two contours
    blobs[1:, 4:24, 4:24] = blobs[1:, 28:36, 28:36] = 1
    where = {ids[0]: [[5, 5, 24, 24]], ids[1]: [[28, 28, 35, 35]], ids[2]: [[28, 28, 35, 35]]}
    sizes = dict.fromkeys(ids, (40, 40))
    boxes = Boxes(tuple(ids), {i: np.array(b) for i, b in where.items()}, sizes, None)
    found = MetricCollection([metrics.MaxBoxAcc(boxes), metrics.MaxBoxAccV2(boxes)])
    found.update(blobs[:1], ids[:1])
    found.update(blobs[1:], ids[1:])
    assert {k: v.item() for k, v in found.compute().items()} == {
        "MaxBoxAcc": pytest.approx(100 / 3),
        "MaxBoxAccV2": 100,
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_refused_batch_leaves_what_others_added(tmp_path, name):
    metric, ids, maps, expected = setup(name, tmp_path)
    metric.missing_as_miss = True
    metric(maps[:4], ids[:4])
    bad = maps[4:].copy()
    bad[-1, 0, 0] = np.nan
    with pytest.raises(ValueError, match="1 NaN value"):
        metric(bad, ids[4:])
    assert metric.missing_as_miss
    assert vars(metric)["_to_sync"]
    metric(maps[4:], ids[4:])
    assert metric.compute().item() == expected


def _score_a_share(rank, root, store, shares, answers):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2
    )
    for name in NAMES:
        metric, ids, maps, _ = setup(name, root / f"{name}{rank}")
        for share in shares[rank]:
            metric.update(maps[share], [ids[i] for i in share])
        answers.put((rank, name, metric.compute().item()))
        assert sum(map(len, metric.places)) == sum(map(len, shares[rank]))  # unsynced again
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    "shares",
    [
        [[[0, 2, 4], [6, 8, 10]], [[1, 3], [5], [7, 9, 0]]],  # the sampler repeats image 0
        [[list(range(N))], []],  # one process has no image
    ],
)
def test_two_processes_give_the_score_of_one(tmp_path, shares):
    context = torch.multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    arguments = (tmp_path, tmp_path / "store", shares, answers)
    processes = [context.Process(target=_score_a_share, args=(r, *arguments)) for r in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    got = [answers.get() for _ in range(2 * len(NAMES))]
    for name in NAMES:
        *_, expected = setup(name, tmp_path / name)
        assert [score for _, n, score in got if n == name] == [expected, expected]


def test_missing_images_count_as_misses_on_request(tmp_path):
    metric, ids, maps, _ = setup("MaxBoxAcc", tmp_path)
    metric.missing_as_miss = True
    batch = metric(maps[:5], ids[:5])
    plain = metric.evaluator().compute().max_box_acc
    assert batch == plain  # of its batch alone
    assert metric.compute().item() == pytest.approx(plain * 5 / N)
