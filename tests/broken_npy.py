"""Damaged ``.npy`` files, as bytes: what a reader must refuse by the file's name."""

import numpy as np


def npy_bytes(shape: str, data: bytes = b"", descr: str = "'<f8'", size: int = 118) -> bytes:
    """Return a file whose header has any text as its shape and its dtype."""
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"
    return np.lib.format.magic(1, 0) + size.to_bytes(2, "little") + _padded(header, size) + data


def _padded(header: str, size: int) -> bytes:
    return header.encode().ljust(size - 1) + b"\n"


BROKEN = {
    "unclosed": npy_bytes("(2, 2"),
    "deep": npy_bytes("(" * 3000, size=4000),
    "zip": b"PK\x03\x04" + bytes(200),
    "large": npy_bytes("(1000000, 1000000)", bytes(64)),
    "beyond integers": npy_bytes(f"({10**20}, 5)", bytes(64)),
    "empty and beyond integers": npy_bytes(f"({10**20}, 0)"),
    "nothing beyond integers": npy_bytes(f"({10**20}, 5)", descr="'|V0'"),
    "negative": npy_bytes("(-1, 5)", bytes(400)),
    "bool": npy_bytes("(True, 5)", bytes(400)),
    "float": npy_bytes("(2.0, 5)", bytes(400)),
    "short": npy_bytes("(2, 5)", bytes(79)),
    "many dimensions": npy_bytes(f"({'1, ' * 99})", bytes(8), size=500),
    "no dtype": npy_bytes("(2, 2)", bytes(400), descr="()"),
    "a field of nothing": npy_bytes("(2, 2)", bytes(400), descr="[('a', 5)]"),
    "version": b"\x93NUMPY\x09\x09" + bytes(400),
}
