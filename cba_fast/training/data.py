"""The images of a training run: the two splits, and each epoch's batches."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..data import ImageRecord, ImageSet, cub, open_image_set, read_image
from ..data.reading import cut
from ..data.textlines import some
from ..errors import ImageError, InputError
from ..process import end_worker_with_parent
from ..resume import list_fingerprint, values_fingerprint
from ..runs.inference import report_on
from ..runs.ranks import Ranks
from ..runs.runtime import Runtime
from ..short import Short

SPLITS = ("train", "test")
# A run goes on without a few unreadable images. If a larger share is missing, it would train on
# something else than what was asked for.
MOST_UNREADABLE = 0.05


@dataclass(frozen=True)
class Splits:
    """The two splits of a data root, of the same classes."""

    train: ImageSet
    test: ImageSet

    @property
    def inputs(self) -> dict[str, dict]:
        """Fingerprints of the images, wherever their folder is, and of labels that files give."""
        records = (*self.train.records, *self.test.records)
        found = {"images": list_fingerprint((r.image_id, r.path) for r in records)}
        if self.train.kind == "cub":  # otherwise they are the names of folders
            labels = [r.label for r in records], self.train.class_names
            found["labels"] = values_fingerprint(labels)
        return found


def open_splits(
    data_root: Path, num_classes: int | None = None, follow_links: bool = False
) -> Splits:
    """List ``<data_root>/{train,test}/<class>/<image>``, or the splits of a CUB_200_2011 folder.

    Args:
        data_root: the folder.
        num_classes: the number of classes that there must be; None for any.
        follow_links: see :func:`cba_fast.data.open_image_set`.

    Raises:
        InputError: a folder is missing or has no class folders, a class folder is empty, there is
            only one class or another number than `num_classes`, or the splits have different
            classes; the message names them.
    """
    data_root = Path(data_root)
    if cub.is_cub(data_root):
        train, test = (
            open_image_set(data_root, split=s, follow_links=follow_links) for s in SPLITS
        )
    else:
        missing = [f"no folder {data_root / s}" for s in SPLITS if not (data_root / s).is_dir()]
        if missing:
            raise InputError(
                f"{' and '.join(missing)}: images are expected at {data_root}/train/<class>/ and "
                f"{data_root}/test/<class>/"
            )
        train, test = (open_image_set(data_root / s, follow_links=follow_links) for s in SPLITS)
    only = [
        f"{some(sorted(set(a) - set(b)), 10)} only in {s}"
        for s, a, b in (
            ("train", train.class_names, test.class_names),
            ("test", test.class_names, train.class_names),
        )
        if set(a) - set(b)
    ]
    if only:
        raise InputError(f"{data_root}: train and test have different classes: {'; '.join(only)}")
    if len(train.class_names) < 2:
        raise InputError(f"{data_root}: training needs two classes, found {train.class_names[0]}")
    if num_classes is not None and num_classes != len(train.class_names):
        raise InputError(
            f"{data_root}/train has {len(train.class_names)} classes, but num_classes is "
            f"{num_classes}"
        )
    return Splits(train, test)


@dataclass(frozen=True, repr=False)
class EpochPlan(Short):
    """Everything that is random about the images of one epoch.

    Attributes:
        batches: image indices of each batch.
        seeds: (number of images,) int64, the seed of each image's augmentation.
        flips: (number of images,) bool, which images are mirrored.
        model_seed: seed of PyTorch's global generators, from which drop path and dropout draw.
    """

    batches: list[np.ndarray]
    seeds: np.ndarray
    flips: np.ndarray
    model_seed: int


def plan_epoch(
    seed: int, epoch: int, count: int, batch_size: int, *, join_last: bool = False
) -> EpochPlan:
    """Draw the plan of an epoch from (seed, epoch) alone, whatever ran before.

    Args:
        seed, epoch: the seed of the run, and the number of the epoch.
        count: number of images.
        batch_size, join_last: see :func:`cut_batches`.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(count)
    return EpochPlan(
        batches=cut_batches(order, batch_size, join_last=join_last),
        seeds=rng.integers(2**32, size=count),
        flips=rng.random(count) < 0.5,
        model_seed=int(rng.integers(2**32)),
    )


def cut_batches(items: np.ndarray, size: int, *, join_last: bool) -> list[np.ndarray]:
    """Cut `items` into batches of `size`; the last one may be shorter.

    With `join_last`, a last batch of one image joins the one before (unless `size` is 1): a batch
    norm learns nothing from one image, and fails where its map is 1x1.
    """
    batches = cut(items, size)
    if join_last and 1 < size < len(items) and len(batches[-1]) == 1:
        batches[-2:] = [items[-size - 1 :]]
    return batches


@dataclass(repr=False)
class PixelBatch(Short):
    """The readable images of one batch.

    Attributes:
        indices: N positions in the split.
        pixels: (N,S,S,3) uint8; None if no image is readable.
    """

    indices: list[int]
    pixels: Tensor | None


class PixelDataset(Dataset):
    """Images as uint8 arrays; the key of an item is (index, seed).

    Args:
        records: the images.
        prepare: PIL image -> PIL image, the part of the preprocessing that never changes.
        vary: (PIL image, seed) -> PIL image, the random part; None for no such part.
        prepared: (len(records),P,P,3) uint8, the results of `prepare` if they are cached.
    """

    def __init__(
        self,
        records: Sequence[ImageRecord],
        prepare: Callable,
        vary: Callable | None = None,
        prepared: Tensor | None = None,
    ):
        self.records, self.prepare, self.vary = tuple(records), prepare, vary
        self.prepared = prepared

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: tuple[int, int]) -> dict:
        index, seed = key
        truncated = False
        if self.prepared is not None:
            image = Image.fromarray(self.prepared[index].numpy())
        else:
            try:
                image, truncated = read_image(self.records[index].path)
            except ImageError as e:
                return {"index": index, "pixels": None, "truncated": False, "error": str(e)}
            image = self.prepare(image)
        if self.vary is not None:
            image = self.vary(image, seed)
        return {"index": index, "pixels": np.array(image), "truncated": truncated, "error": ""}


def _collate(items: list[dict]) -> dict:
    """Stack the readable images of a batch into one array in the worker that read them.

    It is no tensor, because tensors leave a worker through shared memory files, and a worker that
    cannot make one (a small /dev/shm, a file size limit) hangs the run.
    """
    readable = [i for i in items if not i["error"]]
    pixels = np.stack([i["pixels"] for i in readable]) if readable else None
    return {
        "indices": [i["index"] for i in readable],
        "pixels": pixels,
        "truncated": [i["index"] for i in readable if i["truncated"]],
        "failed": [(i["index"], i["error"]) for i in items if i["error"]],
    }


class PixelReader:
    """Reads the images of one split in given batches, as often as needed.

    Batches depend on their indices and seeds only, and neither on the number of processes that read
    nor on whether the images are cached. An unreadable image is left out of its batch and reported
    once.

    Args:
        images: the split.
        prepare, vary: see :class:`PixelDataset`.
        run: gives `num_workers`, `strict`, and the device, for which memory is pinned.
        cached: read and prepare every image now, and keep it in memory.

    Attributes:
        report: the unreadable and the truncated images so far.

    Raises:
        ImageError: an image is unreadable in a strict run, or more than 5 % of them in any run.
    """

    def __init__(
        self,
        images: ImageSet,
        prepare: Callable,
        vary: Callable | None,
        run: Runtime,
        *,
        cached: bool,
    ):
        self.report = report_on(images.records, run.config.strict)
        self._images, self._vary, self._run = images, vary, run
        self._failed: set[int] = set()
        self._keys: list[list[tuple[int, int]]] = []
        self._prepared: Tensor | None = None
        if cached:
            self._prepared = self._read_all(PixelDataset(images.records, prepare))
        dataset = PixelDataset(images.records, prepare, vary, self._prepared)
        self._loader = self._make_loader(dataset, self._keys, persistent=True)

    def batches(
        self, batches: Sequence[Sequence[int] | np.ndarray], seeds: np.ndarray | None = None
    ) -> Iterator[PixelBatch]:
        """Yield the batches in order; `seeds` holds one seed per image of the split."""
        wanted = [[int(i) for i in batch if int(i) not in self._failed] for batch in batches]
        if self._prepared is not None and self._vary is None:
            for indices in wanted:
                yield PixelBatch(indices, self._prepared[indices] if indices else None)
            return
        # The list is changed in place because the loader refers to it.
        self._keys[:] = [[(i, 0 if seeds is None else int(seeds[i])) for i in b] for b in wanted]
        for read in self._loader:
            self._note(read)
            pixels = None if read["pixels"] is None else torch.from_numpy(read["pixels"])
            if pixels is not None and self._run.device.type == "cuda":
                pixels = pixels.pin_memory()
            yield PixelBatch(read["indices"], pixels)

    def share(self, ranks: Ranks) -> None:
        """Wait for all processes; take over which images the others could not read.

        Raises:
            ImageError: they are too many, see :class:`PixelReader`.
        """
        if ranks.count == 1:
            return
        self.report.loads(*ranks.share(self.report.dumps()))
        self.report.failed = sorted(dict(self.report.failed).items())
        self.report.truncated = sorted(set(self.report.truncated))
        self._failed = {index for index, _ in self.report.failed}
        self._check_failed()

    def _make_loader(self, dataset: PixelDataset, keys: list, persistent: bool) -> DataLoader:
        workers = self._run.config.num_workers
        return DataLoader(
            dataset,
            batch_sampler=keys,
            num_workers=workers,
            collate_fn=_collate,
            persistent_workers=persistent and workers > 0,
            worker_init_fn=end_worker_with_parent,
            # Starting a pass draws a number. From the global generator, that would change what the
            # model's drop path draws.
            generator=torch.Generator(),
        )

    def _read_all(self, dataset: PixelDataset) -> Tensor:
        keys = [[(i, 0) for i in batch] for batch in cut(range(len(dataset)), 64)]
        prepared = None
        for read in self._make_loader(dataset, keys, persistent=False):
            self._note(read)
            if read["pixels"] is None:
                continue
            if prepared is None:
                prepared = torch.zeros(len(dataset), *read["pixels"].shape[1:], dtype=torch.uint8)
            prepared[read["indices"]] = torch.from_numpy(read["pixels"])
        self.report.check_any(0 if prepared is None else 1)
        assert prepared is not None  # an image of the split was read
        return prepared

    def _note(self, read: dict) -> None:
        known = set(self.report.truncated)
        self.report.truncated += [i for i in read["truncated"] if i not in known]
        for index, reason in read["failed"]:
            if index not in self._failed:
                self._failed.add(index)
                self.report.fail(index, reason)
        self._check_failed()

    def _check_failed(self) -> None:
        if len(self._failed) > MOST_UNREADABLE * len(self._images):
            index, reason = self.report.failed[0]
            raise ImageError(
                f"{self._images.root}: {len(self._failed)} of {len(self._images)} images cannot be "
                f"read, more than {MOST_UNREADABLE:.0%}; {self.report.name(index)}: {reason}"
            )
