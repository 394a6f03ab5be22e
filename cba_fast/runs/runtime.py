"""Where and in which numbers a run computes, decided once from its settings."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from ..errors import InputError, first_line
from ..models import inference_form
from .settings import RunConfig

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Runtime:
    """The device and the number formats of a run.

    Attributes:
        config: the settings that it was made from: batch size, workers, strictness.
        device: where the model computes.
        dtype: of the weights at inference, and of what autocast computes.
        memory_format: of images and weights.
        threads: PyTorch's number of threads when the run began.
    """

    config: RunConfig
    device: torch.device
    dtype: torch.dtype
    memory_format: torch.memory_format
    threads: int

    @classmethod
    def of(cls, run: "RunConfig | Runtime") -> "Runtime":
        """Return the runtime of settings; one that is made already stays as it is.

        Raises:
            InputError: the device is unknown or not there, or cannot compute in the precision.
        """
        if isinstance(run, Runtime):
            return run
        formats = {True: torch.channels_last, False: torch.contiguous_format}
        return cls(
            run,
            _device(run),
            _DTYPES[run.precision],
            formats[run.channels_last],
            torch.get_num_threads(),
        )

    def autocast(self) -> AbstractContextManager:
        """Return the autocast context of the precision; in float32 it does nothing."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def form_of(self, model: nn.Module, keep_layers: bool = False) -> nn.Module:
        """Return the `inference_form` of a model for this run.

        Args:
            model: any model.
            keep_layers: fold no norm of other people's networks into a layer, because features
                inside are looked at: those of a convolution would become those of its norm.
        """
        return inference_form(
            model,
            keep=[name for name, _ in model.named_modules()] if keep_layers else (),
            device=self.device,
            dtype=self.dtype,
            channels_last=self.memory_format == torch.channels_last,
        )


def _device(run: RunConfig) -> torch.device:
    name = run.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as e:
        raise InputError(f"device {name!r} cannot be used: {first_line(e)}") from e
    if device.type == "meta":
        raise InputError("device 'meta' holds no numbers to compute with")
    if device.type == "cpu" and run.precision == "fp16":
        raise InputError("precision fp16 needs a GPU; on CPUs use fp32 or bf16")
    return device
