"""Read ``.npy`` files; headers are checked before memory is allocated for what they promise."""

import math
import os
import tokenize
from typing import BinaryIO

import numpy as np

from .files import open_regular

# NumPy parses the header as a Python literal, so a damaged header can raise whatever the parser and
# the constructor of dtypes raise.
NPY_ERRORS = (
    *(OSError, ValueError, EOFError, TypeError, ArithmeticError, LookupError, AttributeError),
    *(SyntaxError, RecursionError, MemoryError, tokenize.TokenError),
)
ZIP_MAGIC = b"PK\x03\x04"


def is_plain_shape(shape: tuple) -> bool:
    """Return whether all of `shape` are integers above 0; NumPy's parser accepts -1 and True."""
    return all(type(n) is int and n > 0 for n in shape)


def check_npy(file: BinaryIO) -> None:
    """Refuse a file that is no ``.npy``, holds objects, or is shorter than its header says.

    Args:
        file: open at its start, where it is left.

    Raises:
        ValueError: what is wrong; other types of `NPY_ERRORS` for a header that cannot be parsed.
    """
    if file.read(len(ZIP_MAGIC)) == ZIP_MAGIC:
        raise ValueError("it holds several arrays (.npz), not one .npy array")
    file.seek(0)
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    else:  # version 3.0 differs from 2.0 only in names of fields that are not ASCII
        shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are not unpickled")
    if not is_plain_shape(shape):
        raise ValueError(f"shape {shape} is not made of integers above 0")
    have, want = os.fstat(file.fileno()).st_size, file.tell() + math.prod(shape) * dtype.itemsize
    if have < want:
        raise ValueError(f"{shape} {dtype} needs {want} bytes, the file has {have}")
    file.seek(0)


def read_npy(path: str | os.PathLike) -> np.ndarray:
    """Return the array of an ``.npy`` file, which may be anything that a user has named.

    Raises:
        OSError: no such file, not readable, or not a regular file.
        ValueError: no whole ``.npy`` of plain values; the message does not name the file.
    """
    try:
        with open_regular(path) as f:
            check_npy(f)
            return np.lib.format.read_array(f, allow_pickle=False)
    except OSError:
        raise
    except NPY_ERRORS as e:
        raise ValueError(str(e) or type(e).__name__) from e
