"""``evaluate --engine ray``: workers score parts of the images, and this process merges them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeVar

from ..evaluate import EvaluateResult, evaluate
from ..ranks import Ranks
from ..settings import BoxConfig, ClusterConfig, DataConfig, MapConfig, ModelConfig, RunConfig
from .pool import Log, Pool, connected, spoken

Value = TypeVar("Value")
_Settings = tuple[ModelConfig, DataConfig, RunConfig, MapConfig, BoxConfig]


@dataclass(frozen=True)
class _Part(Ranks):
    """A worker's part of a run, which notes what it found for the process that merges.

    The parts do not wait for each other, so one that dies is computed again alone. Each leads: what
    the first process would find out for all, it finds out for itself.
    """

    noted: list = field(default_factory=list)
    leads: ClassVar[bool] = True
    alone: ClassVar[bool] = False
    whole: ClassVar[bool] = False

    def share(self, value: Value) -> list[Value]:
        self.noted.append(value)
        return [value]


@dataclass(frozen=True)
class _Merging(Ranks):
    """The process that computes no batch, and gets from `parts` what each part noted, in order."""

    parts: Iterator[tuple] = field(default_factory=lambda: iter(()))
    alone: ClassVar[bool] = False

    def mine(self, batches: Sequence[Value]) -> Sequence[Value]:
        return batches[:0]

    def share(self, value: Value) -> list[Value]:
        return list(next(self.parts))


def evaluate_in_shards(
    cluster: ClusterConfig,
    model_config: ModelConfig,
    data: DataConfig,
    run: RunConfig,
    maps: MapConfig,
    box_config: BoxConfig,
    *,
    scored: Callable[[EvaluateResult], None] | None = None,
    log: Log = print,
    **options: Any,
) -> EvaluateResult:
    """Evaluate on a Ray cluster, with the result of one process of as many threads as `cpus`.

    Args:
        cluster: how many shards, and what each needs.
        model_config, data, run, maps, box_config, scored: as for `evaluate`.
        log: gets the lines of the workers.
        options: `num_samples`, `p`, `seed` and `tuned` of `evaluate`.

    Raises:
        CbaError: as `evaluate` and `cba_fast.runs.cluster.pool.connected`; a worker died too often.
    """
    settings = (model_config, data, run, maps, box_config)
    with connected(cluster, log) as pool:
        needs = pool.needs(None, None, run.device)
        count = cluster.shards or max(pool.places(needs), 1)
        started = []
        for n in range(count):
            work = (_evaluate, _Part(n, count), settings, options)
            started.append(pool.start(f"shard {n + 1} of {count}", needs, *work))
        # This machine may have no GPU; it makes no map, so it needs no precision either.
        here = replace(run, device="cpu", precision="fp32", compile=False)
        merging = _Merging(0, count, parts=_columns(pool, started))
        settings = (model_config, data, here, maps, box_config)
        return evaluate(*settings, scored=scored, ranks=merging, **options)


def _evaluate(part: _Part, settings: _Settings, options: dict, *, log: Log) -> list:
    """Return what a part notes, on a worker."""
    bar = spoken(log)
    shown, erf_shown = bar("evaluating"), bar("ERF sizes")
    evaluate(*settings, ranks=part, progress=shown, erf_progress=erf_shown, **options)
    return part.noted


def _columns(pool: Pool, started: list) -> Iterator[tuple]:
    """Wait for all parts, then yield what they noted first, second and so on."""
    parts = {}
    for reference, noted in pool.finished(started):
        if isinstance(noted, Exception):
            raise noted
        parts[reference] = noted
    yield from zip(*(parts[reference] for reference in started))
