"""Score maps: what a valid one is, how a batch of them is taken, and where stored ones lie."""

import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from ..data.records import check_image_id, map_name
from ..data.textlines import counted
from ..errors import InputError, ScoreMapError
from ..npy import read_npy
from ..ops import quantize
from ..shapes import Size, map_shape

DTYPES = tuple(map(np.dtype, (np.float16, np.float32, np.float64, np.uint8)))
MOST_CLIP = 0.01  # largest tolerance: 2.55 of the 255 levels


class MapFolder:
    """A folder of ``.npy`` score maps with the names of the study or of wsolevaluation.

    For the image id ``a/b/x.y.jpg`` the official name is ``a/b/x.y.jpg.npy`` and the study's name
    ``b/x.npy`` (the image's parent folder, the file name up to its first dot). If both files exist,
    the official one is taken and the id is added to `ambiguous`.

    Raises:
        ScoreMapError: `root` is not a folder.

    Example:
        >>> from cba_fast.data import load_boxes
        >>> from cba_fast.wsol import MapFolder
        >>> image_id = load_boxes(cub_root="CUB_200_2011").image_ids[0]
        >>> MapFolder("maps").find(image_id).as_posix()
        'maps/001.Violet_spotted_head_Bird/Violet_spotted_head_Bird_0004.npy'
    """

    def __init__(self, root: str | os.PathLike):
        self.root = Path(root)
        if not self.root.is_dir():
            raise ScoreMapError(f"{self.root}: no such folder of score maps")
        self.ambiguous: list[str] = []
        self._files: dict[str, set[str]] = {}

    def find(self, image_id: str) -> Path | None:
        """Return the path of the map of `image_id`, or None if there is none.

        Raises:
            InputError: the id, which comes from a text file, is no plain relative path; its map
                could lie outside of the folder.
        """
        check_image_id(image_id, str(self.root))
        official, study = f"{image_id}.npy", map_name(image_id)
        if self._has(official):
            if study != official and self._has(study):
                self.ambiguous.append(image_id)
            return self.root / official
        return self.root / study if self._has(study) else None

    def _has(self, name: str) -> bool:
        """Tell whether there is a map file of this name.

        Each folder is listed once: looking for one file after another took minutes for three
        million ids, most of them without a map.
        """
        folder, _, name = name.rpartition("/")
        if folder not in self._files:
            try:
                with os.scandir(self.root / folder) as entries:
                    self._files[folder] = {  # is_file alone raises for a link to itself
                        e.name
                        for e in entries
                        if e.is_file(follow_symlinks=False) or os.path.isfile(e)
                    }
            except OSError:  # no such folder
                self._files[folder] = set()
        return name in self._files[folder]

    def describe(self, path: Path) -> str:
        """Return the name of the map at `path` for messages."""
        return str(path)


def read_score_map(
    path: str | os.PathLike, eval_size: Size = None, resize: bool = False, clip: float = 0.0
) -> np.ndarray:
    """Read one score map and check it.

    Args:
        path: an ``.npy`` file; object arrays are refused, nothing is unpickled.
        eval_size: the side or (H, W) that the map must have; None accepts any size.
        resize: resize maps of other sizes to `eval_size` with OpenCV's bilinear ``resize``.
        clip: see :func:`check_score_map`.

    Returns:
        (H, W) float64, float32 or float16 in [0, 1], or uint8.

    Raises:
        ScoreMapError: not readable as ``.npy``, or refused by :func:`check_score_map`; the message
            names the file.

    Example:
        >>> import numpy as np
        >>> from cba_fast.wsol import read_score_map
        >>> np.save("map.npy", np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4))
        >>> read_score_map("map.npy", eval_size=224, resize=True).shape
        (224, 224)
    """
    try:
        scoremap = read_npy(path)
    except (OSError, ValueError) as e:
        raise ScoreMapError(f"{path}: not a readable score map: {e}") from e
    scoremap = check_score_map(scoremap, str(path), clip)
    return fitted(scoremap, str(path), eval_size, resize)


def fitted(scoremap: np.ndarray, name: str, eval_size: Size, resize: bool) -> np.ndarray:
    """Return a checked map at the size asked for; arguments as for :func:`read_score_map`.

    Raises:
        ScoreMapError: it has another size, and is not to be resized.
    """
    if eval_size is None or scoremap.shape == (shape := map_shape(eval_size, name="eval_size")):
        return scoremap
    if not resize:
        raise ScoreMapError(
            f"{name}: shape {scoremap.shape}, but {shape} is asked for (`resize` resizes it)"
        )
    return resize_score_map(scoremap, shape)


def check_score_map(scoremap: np.ndarray, name: str, clip: float = 0.0) -> np.ndarray:
    """Return a score map if it is valid, with small excesses clipped; refuse it otherwise.

    Args:
        scoremap: the map.
        name: the file or image id, for messages.
        clip: values that leave [0, 1] by no more than this, at most `MOST_CLIP`, are clipped, as
            rounding errors produce them. NaN never is.

    Raises:
        ScoreMapError: the map is not 2-D, is empty, has a dtype other than float16/32/64 and uint8,
            NaN, or values outside [0, 1]; the message says which value is farthest outside, by how
            much and where.
        InputError: `clip` is outside of its range.

    Example:
        >>> import numpy as np
        >>> from cba_fast.wsol import check_score_map
        >>> check_score_map(np.array([[0.0, 1.000001]]), "a.npy", clip=1e-5)
        array([[0., 1.]])
    """
    check_clip(clip)
    if scoremap.ndim != 2 or scoremap.size == 0:
        raise ScoreMapError(f"{name}: shape {scoremap.shape} is not (H, W) with H, W >= 1")
    if scoremap.dtype == np.uint8:
        return scoremap
    if scoremap.dtype not in DTYPES:
        raise ScoreMapError(f"{name}: dtype {scoremap.dtype} is not float16/32/64 or uint8")
    low, high = scoremap.min(), scoremap.max()  # NaN propagates through both
    if np.isnan(low):
        bad = np.argwhere(np.isnan(scoremap)).tolist()
        many = "" if len(bad) == 1 else "the first "
        raise ScoreMapError(
            f"{name}: holds {counted(len(bad), 'NaN value')}, {many}at {tuple(bad[0])}"
        )
    beyond = max(-float(low), float(high) - 1)
    if beyond <= 0:
        return scoremap
    if beyond > clip:
        bad, bound = (low, "< 0") if beyond == -float(low) else (high, "> 1")
        at = np.unravel_index(int((scoremap == bad).argmax()), scoremap.shape)
        enough = [c for c in (1e-5, 1e-3, MOST_CLIP) if beyond <= c]
        hint = f"; `clip` {enough[0]:g} clips it" if enough else ""
        raise ScoreMapError(
            f"{name}: the value {bad!s} {bound} by {beyond:.3g} at {tuple(map(int, at))}; scores "
            f"must lie in [0, 1]{hint}"
        )
    return scoremap.clip(0, 1)


def check_clip(clip: float) -> None:
    """Refuse a tolerance outside of its range.

    Raises:
        InputError: `clip` is negative, NaN or above `MOST_CLIP`.
    """
    if not 0 <= clip <= MOST_CLIP:
        raise InputError(f"`clip` must lie in [0, {MOST_CLIP:g}], got {clip}")


def check_score_maps(maps: np.ndarray, names: Sequence[str], clip: float = 0.0) -> np.ndarray:
    """Apply :func:`check_score_map` to each of the maps (N, H, W) and return them."""
    for m, name in zip(maps, names, strict=True):
        check_score_map(m, name, clip)
    return maps.clip(0, 1) if clip else maps


def as_batch(scoremaps: Tensor | np.ndarray | Sequence) -> Tensor | np.ndarray:
    """Return the score maps as one tensor or array (N, H, W).

    Args:
        scoremaps: (N, H, W), or a list or tuple of N maps (H, W) of one shape and dtype.

    Raises:
        ValueError: another shape, or maps of several shapes or dtypes.
        TypeError: neither tensors nor arrays.
    """
    if isinstance(scoremaps, list | tuple):
        if not scoremaps:
            return np.zeros((0, 1, 1))
        kinds = {(tuple(np.shape(m)), str(getattr(m, "dtype", type(m)))) for m in scoremaps}
        # The rounding of the quantization depends on the dtype, so there must be only one.
        if len(kinds) > 1:
            found = " and ".join(f"{shape} {dtype}" for shape, dtype in sorted(kinds)[:2])
            raise ValueError(f"score maps in a list must have one shape and dtype, got {found}")
        scoremaps = (torch if torch.is_tensor(scoremaps[0]) else np).stack(scoremaps)
    if not isinstance(scoremaps, Tensor | np.ndarray):
        raise TypeError(f"score maps must be a tensor or an array, got {type(scoremaps).__name__}")
    shape = tuple(scoremaps.shape)
    if len(shape) != 3 or 0 in shape[1:]:
        squeeze = "; take the channel out with squeeze(1)" if shape[1:2] == (1,) else ""
        raise ValueError(f"score maps must be (N, H, W) with H, W >= 1, got {shape}{squeeze}")
    return scoremaps


def as_bytes(maps: Tensor | np.ndarray, names: Sequence[str], clip: float = 0.0) -> Tensor:
    """Return the bytes u = uint8(255 * m) of maps (N, H, W), where the maps are.

    Raises:
        ScoreMapError, InputError: as :func:`check_score_map`, for the first map that is not valid.
    """
    try:
        return quantize(maps)
    except ScoreMapError:  # looking at the maps one by one finds the one to name, or clips them
        found = maps.detach().cpu().double().numpy() if isinstance(maps, Tensor) else maps
        check_score_maps(found, names, clip)
        return quantize(maps.clip(0, 1))


def resize_score_map(scoremap: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Resize a score map to `shape` (H, W) bilinearly; the result stays in [0, 1]."""
    if scoremap.dtype == np.float16:  # OpenCV does not resize half precision
        scoremap = scoremap.astype(np.float32)
    out = cv2.resize(scoremap, shape[::-1], interpolation=cv2.INTER_LINEAR)
    if out.dtype != np.uint8:
        np.clip(out, 0, 1, out=out)  # interpolation may exceed 1 by a rounding error
    return out
