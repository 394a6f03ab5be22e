"""Decides whether a run can go on from the files that an earlier run left behind.

Before its first result a run writes a *record*: its settings, fingerprints of its inputs, the
versions it was made with, and the files that it is going to write. The same command, started again,
finds an equal record and goes on from the files that are there. A run with another record is
refused, with each difference named; with ``overwrite`` it removes the files that the old record
lists, and nothing else. Every command that can be continued does it through this module.
"""

import functools
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TypeGuard, TypeVar

from . import __version__, files, locks
from .errors import InputError

FORMAT = 2  # raised when records, or the files that they list, change their meaning
MANIFEST = "manifest.json"

Result = TypeVar("Result")

_EARLIER = "written by an earlier version of cba_fast"


class OtherRunError(InputError):
    """The files belong to a run that differs from this one, so that it cannot be continued.

    Args:
        where: the file or folder.
        changes: the differences in words, see :func:`differences`.
    """

    def __init__(self, where: str | os.PathLike, changes: Iterable[str]):
        super().__init__(
            f"{where} belongs to another run: {'; '.join(changes)} (`overwrite` starts anew and "
            "replaces what that run wrote)"
        )


def file_fingerprint(path: str | os.PathLike | None) -> dict | None:
    """Return what identifies a file of weights or a table: the SHA-256 of its bytes.

    The path is recorded but not compared, so that the file may be moved. A file that is gone has
    the SHA-256 None, which counts as unchanged.
    """
    if path is None:
        return None
    path = Path(path)
    if not path.is_file():
        return {"path": str(path), "sha256": None}
    s = path.stat()
    # A process hashes a file again only if it was touched in between.
    state = (s.st_size, s.st_mtime_ns, s.st_ino, s.st_ctime_ns)
    return {"path": str(path), "sha256": _sha256(path, *state)}


def list_fingerprint(items: Iterable[tuple[str, str | os.PathLike]]) -> dict:
    """Return what identifies a list of (name, path), such as images: names, sizes and times."""
    digest, count = hashlib.sha256(), 0
    for name, path in items:
        count += 1
        try:
            s = os.stat(path)
            digest.update(repr((name, s.st_size, s.st_mtime_ns)).encode(errors="surrogateescape"))
        except OSError:
            digest.update(repr((name, None)).encode(errors="surrogateescape"))
    return {"count": count, "sha256": digest.hexdigest()}


def values_fingerprint(values: object) -> dict:
    """Return what identifies values that come from several files, such as labels or boxes."""
    return {"sha256": hashlib.sha256(repr(values).encode(errors="surrogateescape")).hexdigest()}


def describe(settings: dict, inputs: dict | None = None, *, torch: str | None = None) -> dict:
    """Return the record of a run, without its files.

    Args:
        settings: JSON values (dicts of them are compared key by key). A setting that is the path of
            an input of the same name is not compared: the input's fingerprint is.
        inputs: fingerprints by name.
        torch: the version of PyTorch, for runs whose results depend on it.
    """
    record = {
        "written_by": "cba_fast",
        "format": FORMAT,
        "versions": {"cba_fast": __version__, **({"torch": torch} if torch else {})},
        "settings": settings,
        "inputs": inputs or {},
    }
    return json.loads(json.dumps(record))


def differences(old: dict, new: dict) -> list[str]:
    """Return the differences between an earlier run's record and a new one, a phrase for each."""
    if not isinstance(old.get("format"), int) or old["format"] < FORMAT:
        return [_EARLIER]
    if old["format"] > FORMAT:
        return ["written by a later version of cba_fast"]
    found = []
    for name, now in new["versions"].items():  # `old` may list more versions
        if (was := old["versions"].get(name)) != now:
            found.append(f"written by {name} {was}, this is {now}")
    inputs = {*old["inputs"], *new["inputs"]}
    was, now = _flat(old["settings"]), _flat(new["settings"])
    for key in [*now, *(k for k in was if k not in now)]:
        if key not in inputs and was.get(key) != now.get(key):
            found.append(f"{key} was {was.get(key)!r}, is {now.get(key)!r}")
    for name in sorted(inputs):
        found += _input_change(name, old["inputs"].get(name), new["inputs"].get(name))
    return found


def _input_change(name: str, was: dict | None, now: dict | None) -> list[str]:
    if was is None or now is None:
        return [f"{name} was {_path(was)}, is {_path(now)}"] if was != now else []
    if now["sha256"] in (None, was.get("sha256")):
        return []
    if "path" in now:
        return [f"the {name} {now['path']} are other bytes than those that were used"]
    if "count" not in now:
        return [f"the {name} are not those that were used"]
    counts = was.get("count"), now["count"]
    count = "" if counts[0] == counts[1] else f" ({counts[0]}, now {counts[1]})"
    return [f"the {name} are not those that were used, by names, sizes or times{count}"]


def _path(fingerprint: dict | None) -> str | None:
    return fingerprint.get("path", "a list") if fingerprint else None


def _flat(settings: dict) -> dict:
    flat = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat.update({f"{key}.{k}": v for k, v in _flat(value).items()})
        else:
            flat[key] = value
    return flat


class Outputs:
    """The files that a run writes, and the record of them.

    The record is written before the first file, so that it lists whatever a killed run left.

    Args:
        record: the record's file; the files of the run lie in its folder or below.
        names: the files, relative to that folder, with "/".
        description: what the files belong to, from :func:`describe`.
        owns_folder: True: no other files may lie in the folder. "new": none may lie there before
            the first run, but others may be added later. False: other files do not matter.
    """

    def __init__(
        self,
        record: str | os.PathLike,
        names: Iterable[str],
        description: dict,
        owns_folder: bool | str = True,
    ):
        self.record, self.names = Path(record), list(names)
        self.root, self._lock = self.record.parent, locks.lock_path(self.record)
        self.description = {**description, "files": self.names}
        self._owns_folder = owns_folder

    def check(self, overwrite: bool = False) -> set[str]:
        """Check that the run may write its files here; change nothing.

        Returns:
            The files of this run that are already there; none with `overwrite`.

        Raises:
            InputError: there are files that no record lists, or the record cannot be read.
            OtherRunError: the record differs from this run's, and `overwrite` is False.
        """
        if self.root.exists() and not self.root.is_dir():
            raise InputError(f"{self.root} exists and is not a folder")
        old = self.recorded()
        present = self._present(old)
        foreign = sorted(n for n in present if n not in _listed(old) and not self._is_own(n))
        if foreign and not self._owns_folder:
            raise InputError(
                f"{self.root / foreign[0]} exists, and no record says that an earlier run wrote "
                "it; choose another name or move it away"
            )
        if foreign:
            raise InputError(
                f"{self.root} holds files that no earlier run wrote, such as {foreign[0]}; choose "
                "another folder or move them away"
            )
        if overwrite:
            return set()
        where = self._place
        if old is None:
            if any(_is_partial(n) for n in present):
                raise OtherRunError(where, [_EARLIER])
            return set()
        changes = differences(old, self.description)
        if not changes and old["files"] != self.names:
            changes = [f"it wrote {len(old['files'])} files, not these {len(self.names)}"]
        if changes:
            raise OtherRunError(where, changes)
        return {name for name in present & set(self.names) if self.is_whole(name)}

    def is_whole(self, name: str) -> bool:
        """Whether the file of a name that is there is whole, as far as that can be seen quickly.

        All files are whole after a killed process, but perhaps not after a power failure.
        """
        return True

    @property
    def _place(self) -> Path:
        return self.root if self._owns_folder else self.root / self.names[0]

    def hold(self) -> None:
        """Lock the place for this run; see `cba_fast.locks.hold` for how long.

        Raises:
            BusyError: another run is writing there.
        """
        locks.hold(self.record, self._place)

    def prepare(self, overwrite: bool = False) -> set[str]:
        """Make the place ready: lock it, remove what will not be kept, and write the record.

        The files that this run wrote earlier are kept; with `overwrite` the files of any earlier
        run are removed. Temporary files of killed writes are removed in both cases. Returns and
        raises as :meth:`check` and :meth:`hold`.
        """
        self.check(overwrite)  # what cannot be used is not even locked
        self.hold()
        kept = self.check(overwrite)
        old = self.recorded()
        if old is None or overwrite:
            self._remove(old)
            files.write_json(self.record, self.description)
        self._remove_leftovers(old)
        return kept

    def finish(self, **result: object) -> None:
        """Note in the record that the run has ended, and the result that later calls repeat."""
        files.write_json(self.record, {**self.description, "result": result})
        self._remove_partial()

    @property
    def result(self) -> dict | None:
        """The result that :meth:`finish` noted; None if the run has not ended or a file is gone."""
        old = self.recorded()
        there = all((self.root / n).is_file() for n in self.names if not _is_partial(n))
        return old.get("result") if old and there else None

    def discard(self) -> None:
        """Remove the files of an earlier run, its record and, if it is then empty, the folder.

        This is for a run that writes nothing here but replaces other files of the earlier run.
        Files that no record lists stay. If the record is not one of this package, all files stay.

        Raises:
            OSError: a file cannot be removed.
        """
        try:
            old = self.recorded()
        except InputError:
            return
        if old is None:
            return
        self._remove(old)
        self._remove_leftovers(old)
        self.record.unlink()  # last, so that after a killed removal the rest is still listed
        self._lock.unlink(missing_ok=True)
        self._remove_empty_folders()
        if not os.listdir(self.root):
            self.root.rmdir()

    def _remove_partial(self) -> None:
        for name in filter(_is_partial, self.names):
            (self.root / name).unlink(missing_ok=True)
        self._remove_parts_of_ranks()

    def _remove_parts_of_ranks(self, unfinished: bool = False) -> None:
        if any(map(_is_partial, self.names)):
            for path in parts_of_ranks(self.root / self.names[0], unfinished):
                path.unlink(missing_ok=True)

    def _remove(self, old: dict | None) -> None:
        for name in self._present(old):
            if name in _listed(old) or (_is_partial(name) and name in self.names):
                (self.root / name).unlink()
        self._remove_parts_of_ranks()
        if self._owns_folder:
            self._remove_empty_folders()

    def _remove_leftovers(self, old: dict | None) -> None:
        names = {*_listed(old), *self.names}
        files.remove_leftovers([self.record, *(self.root / name for name in names)])
        self._remove_parts_of_ranks(unfinished=True)

    def _present(self, old: dict | None) -> set[str]:
        if self._owns_folder and (self._owns_folder != "new" or old is None):
            return {
                (Path(folder) / name).relative_to(self.root).as_posix()
                for folder, _, names in os.walk(self.root)
                for name in names
            }
        names = {*_listed(old), *self.names}
        return {name for name in names if os.path.lexists(self.root / name)}

    def _is_own(self, name: str) -> bool:
        if not self._owns_folder and _is_partial(name):
            return True
        own = (self.record.name, self._lock.name)
        # NFS keeps a file that is removed while it is open under a name that begins with ".nfs".
        return name in own or PurePosixPath(name).name.startswith((".tmp-", ".nfs"))

    def recorded(self) -> dict | None:
        """Return the record that is there, or None; one that is not of cba_fast is refused."""
        if not self.record.is_file():
            return None
        record: Any = files.read_json(self.record)
        if not is_record(record):
            raise InputError(f"{self.record}: not a record of this version of cba_fast")
        return record

    def _remove_empty_folders(self) -> None:
        for folder, _, _ in os.walk(self.root, topdown=False):
            if Path(folder) != self.root and not os.listdir(folder):
                os.rmdir(folder)


def beside(output: str | os.PathLike, description: dict, *more: str) -> Outputs:
    """Return the outputs of a run that writes `output`, and the files `more` in the same folder.

    The record is ``.<name>.run.json`` beside `output`; the partial results lie there, too.
    """
    output = Path(output)
    names = [output.name, partial_path(output).name, *more]
    record = output.parent / f".{output.name}.run.json"
    return Outputs(record, names, description, owns_folder=False)


def claim(outputs: Sequence[Outputs], overwrite: bool = False) -> dict | None:
    """Prepare all outputs of a run, or none; return its result if it has ended, else None."""
    for each in outputs:
        each.check(overwrite)
    for each in outputs:
        each.prepare(overwrite)
    results = [each.result for each in outputs]
    if None in results:
        return None
    for each in outputs:
        each._remove_partial()  # the run may have been killed just after its end
    return results[0]


def continue_or_replace(call: Callable[..., Result]) -> Result:
    """Call a run so that it continues an equal run and replaces the files of another one.

    This is for parts of a larger run whose own record says whether it is the same.
    """
    try:
        return call(overwrite=False)
    except OtherRunError:
        return call(overwrite=True)


def partial_path(output: str | os.PathLike, rank: int = 0) -> Path:
    """Return the path of the file that keeps the finished part of `output` until its run ends.

    Each of the processes of one run has a file of its own, by its `rank`.
    """
    output = Path(output)
    return output.parent / f".{output.name}.partial{f'.rank{rank}' if rank else ''}.npz"


def parts_of_ranks(output: str | os.PathLike, unfinished: bool = False) -> list[Path]:
    """Return the files that processes of a run but the first have left, by rank.

    With `unfinished` they are the temporary files of those that were killed while they wrote.
    """
    path = partial_path(output)
    temporary = r"\.tmp-[0-9a-f]+-" if unfinished else ""
    name = re.compile(temporary + re.escape(path.stem) + r"\.rank([0-9]+)\.npz")
    found = [(m, path.parent / m[0]) for m in map(name.fullmatch, _listdir(path.parent)) if m]
    return [part for _, part in sorted(found, key=lambda each: int(each[0][1]))]


def _listdir(folder: Path) -> list[str]:
    return os.listdir(folder) if folder.is_dir() else []


def _is_partial(name: str) -> bool:
    return name.startswith(".") and name.endswith(".partial.npz")


def _listed(record: dict | None) -> set[str]:
    return set(record["files"]) if record else set()


def is_record(value: object) -> TypeGuard[dict]:
    """Return whether a value that was read from a file is the record of a run."""
    if not isinstance(value, dict) or value.get("written_by") != "cba_fast":
        return False
    names = value.get("files")
    keys = ("settings", "versions", "inputs") if "format" in value else ("settings",)
    return (
        all(isinstance(value.get(key), dict) for key in keys)
        and all(v is None or isinstance(v, dict) for v in value.get("inputs", {}).values())
        and isinstance(names, list)
        and all(isinstance(name, str) and files.is_plain_relative(name) for name in names)
    )


@functools.lru_cache(maxsize=1024)
def _sha256(path: Path, *state: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while chunk := f.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()
