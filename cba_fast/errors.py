"""The errors that bad input raises: each message names the offending file, key, shape or value.

A message that speaks of an argument writes its name in backticks, such as `map_size`; the commands
print it as their flag, ``--map_size``, so that one sentence serves Python and the command line.
"""

import re

# The arguments whose flag has another name.
_FLAGS = {"resize": "resize_maps", "allow_beyond": "allow_boxes_beyond"}


def with_flags(message: str) -> str:
    """Return `message` with each argument, such as `map_size`, written as its flag, --map_size."""
    return re.sub("`([a-z][a-z0-9_]*)`", lambda m: f"--{_FLAGS.get(m[1], m[1])}", message)


def first_line(error: BaseException) -> str:
    """Return the first line of another library's error, or its type where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def short_error(error: BaseException) -> str:
    """Return the type and the first line of an error."""
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])


class CbaError(Exception):
    """Base of the errors that a user can cause and mend; the commands print them in one line."""


class CbaWarning(UserWarning):
    """A warning about something that a result does not show; the commands print it in one line."""


class InputError(CbaError, ValueError):
    """A file, a value or a combination of options that cannot be used."""


class BusyError(InputError):
    """Another run is writing the same outputs."""


class ImageError(InputError):
    """An image that cannot be read. A run notes it and goes on, unless it is strict."""


class CheckpointError(InputError):
    """A checkpoint of another family or layout, with wrong keys, or that needs unpickling."""


class ModelError(InputError, TypeError):
    """A network that lacks what was asked of it, such as a linear head over its feature maps."""


class ScoreMapError(InputError):
    """A score map with NaN, values outside [0, 1], a wrong shape or a wrong dtype."""


class BoxError(InputError):
    """A ground-truth box or its annotation that breaks the format."""
