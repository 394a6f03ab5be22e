"""``collect-erf-wsol --engine ray``: the experiments of a plan on the machines of a Ray cluster."""

from collections.abc import Iterator, Sequence

from .. import locks
from ..runs.cluster.pool import Log, connected, spoken
from ..runs.settings import ClusterConfig
from .collect import Collecting, Engine, Outcome, failed, kept, run_step
from .plan import Plan
from .progress import RUN, Step, result_path


def on_cluster(config: ClusterConfig) -> Engine:
    """Return the engine of `collect` that gives each experiment to a worker of a Ray cluster.

    The worker writes the experiment's files, and this process its row. Experiments that share a
    training wait for the first of them, which trains. One whose worker dies starts again, and
    continues its training.
    """

    def engine(run: Collecting, steps: Sequence[Step]) -> Iterator[tuple[Step, Outcome]]:
        yield from ((step, kept(step)) for step in steps if step.need != RUN)
        todo = [(f"[{n}/{len(steps)}] {s.experiment.name}", s) for n, s in enumerate(steps, 1)]
        todo = [(label, step) for label, step in todo if step.need == RUN]
        if not todo:
            return
        with connected(config, run.log) as pool:
            started, trained = {}, {}
            for label, step in todo:
                s = step.experiment.settings
                name = s.training().exp_name if s.weight_path is None else None
                work = (_on_worker, run.plan, run.overwrite, step, trained.get(name))
                reference = pool.start(label, pool.needs(s.cpus, s.gpus, s.device), *work)
                started[reference] = label, step
                if name is not None:
                    trained.setdefault(name, reference)
            for count, (reference, found) in enumerate(pool.finished(started), 1):
                label, step = started[reference]
                broken = isinstance(found, Exception)
                outcome = failed(run, step, str(found)) if broken else found[0]
                run.log(f"{label}: {outcome.status}, {count} of {len(todo)}")
                yield step, outcome

    return engine


def _on_worker(
    plan: Plan, overwrite: bool, step: Step, first: tuple[Outcome, dict] | None, *, log: Log
) -> tuple[Outcome, dict]:
    """Run an experiment; return its outcome and the training of it.

    `first` is what the experiment returned that trains for this one, too.
    """
    run = Collecting(plan, overwrite, log, spoken(log), first[1] if first else {})
    # A worker of a run that was killed may still be at it, for seconds.
    with locks.waiting(result_path(plan, step.experiment.name)):
        return run_step(run, step), run.trained
