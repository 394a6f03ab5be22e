"""A table of byte rows by image id that grows without copying itself."""

from collections.abc import Iterator, Sequence

import numpy as np

BLOCK_BYTES = 4 << 20


class RowTable:
    """Rows (M, T) uint8 by image id, in the order in which they were added.

    The rows lie in blocks of some megabytes. So a growing table is never copied (50,000 rows of
    2 x 1,000 bytes need 100 MB and no more), and each block is one array to compute with.

    Args:
        row_shape: (M, T).
    """

    def __init__(self, row_shape: tuple[int, int]):
        self.row_shape = row_shape
        self._per_block = max(1, BLOCK_BYTES // max(1, row_shape[0] * row_shape[1]))
        self._blocks: list[np.ndarray] = []
        self.index: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self.index)

    def get(self, image_id: str) -> np.ndarray | None:
        """Return the row (M, T) of `image_id`, or None."""
        at = self.index.get(image_id)
        if at is None:
            return None
        block, row = divmod(at, self._per_block)
        return self._blocks[block][row]

    def append(self, image_id: str, row: np.ndarray) -> None:
        """Add the row (M, T) of an image that has none yet."""
        block, at = divmod(len(self.index), self._per_block)
        if at == 0:
            self._blocks.append(np.empty((self._per_block, *self.row_shape), np.uint8))
        self._blocks[block][at] = row
        self.index[image_id] = len(self.index)

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield all rows in order, as arrays (n, M, T)."""
        for start, block in zip(range(0, len(self), self._per_block), self._blocks, strict=True):
            yield block[: len(self) - start]

    def take(self, image_ids: Sequence[str]) -> np.ndarray:
        """Return the rows of `image_ids`, (len(image_ids), M, T)."""
        at = np.array([self.index[i] for i in image_ids], dtype=np.int64)
        out = np.empty((len(at), *self.row_shape), np.uint8)
        for number in np.unique(at // self._per_block):
            mine = at // self._per_block == number
            out[mine] = self._blocks[number][at[mine] % self._per_block]
        return out
