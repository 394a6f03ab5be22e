"""Train and test a model epoch by epoch; this file reads and writes no results."""

import functools
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR

from ..data import ImageSet
from ..data.reading import cut
from ..erf.recompute import recomputing
from ..errors import InputError
from ..models.anatomy.parts import logits_of
from ..models.checkpoints import described
from ..runs.ranks import ALONE, Ranks
from ..runs.runtime import Runtime
from .augment import CropAndJitter, resize, to_floats
from .config import TrainConfig
from .data import EpochPlan, PixelBatch, PixelReader, Splits, plan_epoch
from .many import average_norms, joined, parts_of_step, reducing, shares
from .start import has_batch_norms
from .state import Progress

# Losses are read after this many steps, because reading one waits for the GPU.
_STEPS_BETWEEN_CHECKS = 50
# A loss within this share of log(number of classes) is that of a model that guesses.
_GUESSING = 0.02
_TINY_LAYER_SCALE = 1e-3


@dataclass
class EpochFigures:
    """Mean training loss and top-1 (percent) of an epoch, its last learning rate and its speed."""

    loss: float
    top1: float
    lr: float
    images_per_s: float


class Trainer:
    """The model, the optimizer and the images of one training run.

    Args:
        model: the model in its training form; it is moved to the run's device.
        splits: the images.
        config, run: settings.
        checkpoint: the level of recomputing, one of `cba_fast.erf.LEVELS`; see `prepare`.
        ranks: the processes that train the model together. Each makes a trainer and calls the same
            methods, and all get the same results.

    Attributes:
        progress: the finished epochs. The caller keeps it up to date; it is part of the state.
    """

    def __init__(
        self,
        model: nn.Module,
        splits: Splits,
        config: TrainConfig,
        run: Runtime,
        *,
        checkpoint: str = "none",
        ranks: Ranks = ALONE,
    ):
        self.config, self.run, self.checkpoint, self.ranks = config, run, checkpoint, ranks
        self._has_norms = has_batch_norms(model)
        self.progress = Progress()
        self.device = run.device
        # PyTorch's types do not know of this pair of arguments.
        self.model = model.to(self.device, memory_format=run.memory_format)  # type: ignore[call-overload]
        self.num_classes = len(splits.train.class_names)
        mode, size, cached = config.aug_mode, config.side, config.cache_images
        with ranks.together():
            self._joined = joined(self.model, size, self.device, ranks)
        vary = CropAndJitter(size) if mode == "strong" else None
        first, plain = (resize(size, m, config.preprocessing) for m in (mode, None))
        self._train = PixelReader(splits.train, first, vary, run, cached=cached)
        self._test = PixelReader(splits.test, plain, None, run, cached=cached)
        self._train_labels, self._test_labels = (_labels(s) for s in (splits.train, splits.test))
        # "fused" uses one kernel for all parameters, because a loop over hundreds of small tensors
        # takes more time than the arithmetic.
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True
        )
        # What a process computes when it has no image of a batch.
        self._stand_in = PixelBatch([0], torch.zeros(1, size, size, 3, dtype=torch.uint8))
        steps = config.epochs * len(self._plan(1).batches)
        self._scheduler = _scheduler(self.optimizer, config, steps)
        half = run.dtype == torch.float16
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=half)

    def train_epoch(self, epoch: int, progress: Callable | None = None) -> EpochFigures:
        """Train one epoch (counted from 1).

        Raises:
            InputError: a loss is not finite, or a batch does not suit the model.
            ImageError: see :class:`PixelReader`.
        """
        plan = self._plan(epoch)
        # Each process draws its own drop path; the first as a process that is alone.
        torch.manual_seed(plan.model_seed + self.ranks.rank)
        self.model.train()
        started = time.perf_counter()
        losses, hits, counts, lr = list[Tensor](), list[Tensor](), list[int](), 0.0
        mine = [shares(batch, self.ranks.count)[self.ranks.rank] for batch in plan.batches]
        batches = self._train.batches(mine, plan.seeds)
        for batch in progress(batches, len(mine)) if progress else batches:
            each = self.ranks.counts(len(batch.indices))
            if not any(each):
                continue
            lr = self.optimizer.param_groups[0]["lr"]
            try:
                with self.ranks.together():
                    loss, correct = self._step(batch, plan.flips, each)
            except ValueError as e:  # a batch norm got a single readable image with maps of 1x1
                raise InputError(f"epoch {epoch}, step {len(losses) + 1}: {e}") from e
            losses.append(loss)
            hits.append(correct)
            counts.append(sum(each))
            if len(losses) % _STEPS_BETWEEN_CHECKS == 0:
                self._check_losses(losses, epoch)
        self._check_losses(losses, epoch)
        self._train.share(self.ranks)
        with self.ranks.together():
            average_norms(self.model, self.ranks)
        sizes = torch.tensor(counts, dtype=torch.float64)
        return EpochFigures(
            loss=(self._sums(losses) @ sizes / sizes.sum()).item(),
            top1=100 * self._sums(hits).sum().item() / sum(counts),
            lr=lr,
            images_per_s=sum(counts) / (time.perf_counter() - started),
        )

    def _plan(self, epoch: int) -> EpochPlan:
        count, size = len(self._train_labels), self.config.batch_size
        return plan_epoch(self.config.seed, epoch, count, size, join_last=self._has_norms)

    def _step(self, batch: PixelBatch, flips: np.ndarray, each: list[int]) -> tuple[Tensor, Tensor]:
        """Train on one batch, of which this process has a part and the processes `each` so many.

        Returns:
            What this process adds to the batch's mean loss and to its number of correct answers, on
            the device.
        """
        self._stand_in = batch = self._stand_in if batch.pixels is None else batch
        assert batch.pixels is not None  # the stand-in has some
        mirrored = torch.from_numpy(flips[batch.indices])
        labels = self._train_labels[batch.indices].to(self.device, non_blocking=True)
        self.optimizer.zero_grad(set_to_none=True)
        found = []
        parts = parts_of_step(
            each, self.ranks.rank, self.config.micro_batch, join_last=self._has_norms
        )
        for number, part in enumerate(parts, 1):
            # A process without images computes one of another batch, whose weight is 0: all
            # processes must take part in averaging the gradients.
            rows = slice(part[0], part[-1] + 1) if len(part) else slice(0, 1)
            x = self._floats(batch.pixels[rows], mirrored[rows].to(self.device, non_blocking=True))
            with reducing(self._joined, number == len(parts)):
                with recomputing(self.model, self.checkpoint, between=True), self.run.autocast():
                    logits = logits_of(self.model, self._joined(x)).float()
                    scores = logits.softmax(1) if self.config.study_softmax else logits
                    # With these weights the parts' gradients sum to that of the mean loss.
                    loss = F.cross_entropy(scores, labels[rows]) * (len(part) / sum(each))
                # The sum over the processes, because what follows takes their mean.
                self._scaler.scale(loss * len(each)).backward()
            right = logits.detach().argmax(1) == labels[rows]
            found.append((loss.detach(), right.sum() * bool(len(part))))
        self._scaler.step(self.optimizer)
        self._scaler.update()
        if self._scheduler is not None:
            self._scheduler.step()
        losses, hits = zip(*found, strict=True)
        return torch.stack(losses).sum(), torch.stack(hits).sum()

    def _sums(self, values: list[Tensor]) -> Tensor:
        """Return the sums over the processes of numbers that each has found, in float64."""
        shared = self.ranks.share(torch.stack(values).cpu().double())
        return functools.reduce(torch.add, shared)

    @torch.inference_mode()
    def test(self, epoch: int) -> float:
        """Return the top-1 on the test split in percent; each image counts once.

        Raises:
            InputError: an output is not finite.
            ImageError: see :class:`PixelReader`.
        """
        self.model.eval()
        hits, count, finite = [], 0, []
        size = self.config.micro_batch or self.config.batch_size
        batches = self.ranks.mine(cut(range(len(self._test_labels)), size))
        for batch in self._test.batches(batches):
            if batch.pixels is None:
                continue
            labels = self._test_labels[batch.indices].to(self.device, non_blocking=True)
            with self.run.autocast():
                logits = logits_of(self.model, self.model(self._floats(batch.pixels)))
            finite.append(logits.isfinite().all())
            hits.append((logits.argmax(1) == labels).sum())
            count += len(batch.indices)
        own_finite, own_right = (torch.stack(t).tolist() if t else [] for t in (finite, hits))
        found = self.ranks.share((all(own_finite), sum(own_right), count))
        self._test.share(self.ranks)
        all_finite, right, counts = zip(*found, strict=True)
        if not all(all_finite):
            raise InputError(f"epoch {epoch}: test outputs are not finite; {self._hint()}")
        return 100 * sum(right) / sum(counts)

    def state(self) -> dict:
        """Return the state that :meth:`load` needs, as tensors and plain values."""
        return {
            "progress": asdict(self.progress),
            "model": described(self.model.state_dict(), self.model.description),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self._scheduler is None else self._scheduler.state_dict(),
            "scaler": self._scaler.state_dict(),
        }

    def load(self, state: dict) -> None:
        """Continue from what :meth:`state` returned in a run with the same settings."""
        self.progress = Progress(**state["progress"])
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self._scheduler is not None:
            self._scheduler.load_state_dict(state["scheduler"])
        self._scaler.load_state_dict(state["scaler"])

    def notes(self) -> list[str]:
        """Return lines on the unreadable and truncated images."""
        return [*self._train.report.lines(), *self._test.report.lines()]

    def guessing_warning(self, loss: float) -> str | None:
        """Return a warning if `loss` is that of a model that guesses, else None."""
        chance = math.log(self.num_classes)
        if abs(loss - chance) > _GUESSING * chance:
            return None
        causes = [f"lr {self.config.lr:g} is too low or too high"]
        gammas = [p for name, p in self.model.named_parameters() if name.endswith("gamma")]
        if gammas and max(p.abs().max().item() for p in gammas) < _TINY_LAYER_SCALE:
            causes.append("a layer scale near 0 hides the blocks (ls_init 1 does not)")
        if self.config.study_softmax:
            causes.append("study_softmax makes gradients small")
        return (
            f"the loss {loss:.3f} is still that of guessing among {self.num_classes} classes; "
            f"likely causes: {'; '.join(causes)}"
        )

    def _floats(self, pixels: Tensor, flips: Tensor | None = None) -> Tensor:
        x = to_floats(pixels.to(self.device, non_blocking=True), flips, self.config.preprocessing)
        return x.contiguous(memory_format=self.run.memory_format)

    def _check_losses(self, losses: list[Tensor], epoch: int) -> None:
        """Raise InputError if one of the last losses is not finite."""
        first = (len(losses) - 1) // _STEPS_BETWEEN_CHECKS * _STEPS_BETWEEN_CHECKS
        values = self._sums(losses[first:])
        finite = values.isfinite().tolist()
        if not all(finite):
            step = finite.index(False)
            raise InputError(
                f"epoch {epoch}, step {first + step + 1}: the loss is {values[step].item()}; "
                f"{self._hint()}"
            )

    def _hint(self) -> str:
        tried = [f"a lower `lr` than {self.config.lr:g}"]
        if self.config.schedule != "onecycle":
            tried.append("`schedule` onecycle, which warms up")
        if self.run.config.precision != "fp32":
            tried.append(f"`precision` fp32 instead of {self.run.config.precision}")
        return f"try {' or '.join(tried)}"


def _labels(images: ImageSet) -> Tensor:
    return torch.tensor([record.label for record in images.records])


def _scheduler(
    optimizer: torch.optim.Optimizer, config: TrainConfig, steps: int
) -> LRScheduler | None:
    """Return the learning rate schedule over `steps` steps; None for a constant rate."""
    if config.schedule == "onecycle":
        return OneCycleLR(optimizer, max_lr=config.lr, total_steps=steps)
    if config.schedule == "cosine":
        return CosineAnnealingLR(optimizer, T_max=steps)
    return None
