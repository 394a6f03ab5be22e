"""Files of ranked class predictions, for top-1 and top-5 localization.

A CSV file has the header ``image_id,top1,top2,...`` and one line per image with its 0-based
classes, best first; an id with a comma is quoted. A JSON file holds an object of lists:
``{"<id>": [best, ...]}``.
"""

import contextlib
import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from .. import files
from ..errors import InputError
from .textlines import check_relative, parse_int, read_text, shown

HEADER = "image_id"


def read_predictions(path: str | os.PathLike) -> dict[str, list[int]]:
    """Read the predicted classes of each image, best first.

    Args:
        path: the file; a name that ends in ``.json`` is read as JSON, any other as CSV.

    Raises:
        InputError: the file is not readable or has no header, an image has no classes or is given
            twice, or a class is no integer from 0 to 2**31 - 1; the message names file, line (or
            image) and value.

    Example:
        >>> from cba_fast.data import read_predictions
        >>> list(read_predictions("predictions.csv").values())
        [[1, 0], [0, 1], [0, 1], [1, 0], [1, 0], [1, 0]]
    """
    path = Path(path)
    text = read_text(path)
    rows = _json_rows(path, text) if path.suffix.lower() == ".json" else _csv_rows(path, text)
    found: dict[str, list[int]] = {}
    for where, image_id, classes in rows:
        check_relative(image_id, where, "image id")
        if image_id in found:
            raise InputError(f"{where}: image {image_id!r} was given before")
        if not classes:
            raise InputError(f"{where}: image {image_id!r} has no predicted class")
        found[image_id] = [_label(where, image_id, value) for value in classes]
    if not found:
        raise InputError(f"{path}: holds no predictions")
    return found


def write_predictions(path: str | os.PathLike, predictions: Mapping[str, Sequence[int]]) -> None:
    """Write the predicted classes of each image, in the format that the suffix of `path` asks for.

    Raises:
        OSError: the file cannot be written.

    Example:
        >>> from cba_fast.data import read_predictions, write_predictions
        >>> write_predictions("ranked.json", {"001.Wren/1.jpg": [3, 0, 7]})
        >>> read_predictions("ranked.json")
        {'001.Wren/1.jpg': [3, 0, 7]}
    """
    lists = {image_id: [int(c) for c in classes] for image_id, classes in predictions.items()}
    if Path(path).suffix.lower() == ".json":
        files.write_json(path, lists)
        return
    most = max(map(len, lists.values()), default=0)
    rows: list[list[object]] = [[HEADER, *(f"top{k}" for k in range(1, most + 1))]]
    rows += [[image_id, *classes] for image_id, classes in lists.items()]
    files.write_text(path, files.csv_text(rows))


def _json_rows(path: Path, text: str) -> list[tuple[str, str, list]]:
    def pairs(items: list[tuple[str, object]]) -> list[tuple[str, object]]:
        return items  # a dict would hide an image that is given twice

    try:
        items = json.loads(text, object_pairs_hook=pairs)
    except RecursionError as e:
        raise InputError(f"{path}: not JSON: it is nested too deeply") from e
    except ValueError as e:
        raise InputError(f"{path}: not JSON: {e}") from e
    if text.lstrip()[:1] != "{":
        raise InputError(f"{path}: expected an object of lists, one per image id")
    for image_id, classes in items:
        if not isinstance(classes, list):
            message = f"{path}: image {shown(image_id)} has no list of classes: {shown(classes)}"
            raise InputError(message)
    return [(str(path), image_id, classes) for image_id, classes in items]


def _csv_rows(path: Path, text: str) -> list[tuple[str, str, list]]:
    reader = csv.reader(io.StringIO(text, newline=""))
    lines = _csv_lines(path, reader)
    header = next(lines, [])
    if header[:1] != [HEADER]:
        raise InputError(
            f"{path}, line 1: expected the header {HEADER},top1,..., got {shown(header)}"
        )
    rows = []
    for row in lines:
        if row:
            # Rows may differ in length; spreadsheets fill up the shorter ones with empty cells.
            classes = [cell.strip() for cell in row[1:]]
            while classes and not classes[-1]:
                classes.pop()
            rows.append((f"{path}, line {reader.line_num}", files.from_cell(row[0]), classes))
    return rows


def _csv_lines(path: Path, reader) -> Iterator[list[str]]:
    try:
        yield from reader
    except csv.Error as e:
        raise InputError(f"{path}, line {reader.line_num}: not CSV: {e}") from e


def _label(where: str, image_id: str, value: object) -> int:
    number = value
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            number = parse_int(value)
    if type(number) is int and 0 <= number < 2**31:
        return number
    raise InputError(
        f"{where}: {shown(value, 40)} of image {image_id!r} is not a 0-based class below 2**31"
    )
