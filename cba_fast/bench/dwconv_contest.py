"""A contest of depthwise convolutions, ours against PyTorch's, with a check of their results."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from ..ops.dwconv import depthwise_conv2d, depthwise_conv2d_grad_weight, depthwise_conv2d_grad_x
from .contest import Contest

DIRECTIONS = ("forward", "grad_x", "grad_weight")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

OURS, OURS_CL = "ours", "ours_channels_last"
NCHW, CL, FFT = "nchw", "channels_last", "fft"
RIVALS = (NCHW, CL, FFT)

# A result with a larger relative L2 error against float64 is wrong and is not timed. In float32 an
# error of 1 % in one of 51x51 taps makes 2e-4, and the candidates stay below 2e-6. In bfloat16
# rounding alone makes up to 2^-9 = 2e-3, and PyTorch's own kernels reach 5e-3.
WRONG = {"float32": 1e-5, "bfloat16": 1e-2}


@dataclass(frozen=True)
class Case:
    """A depthwise convolution: x (batch, channels, height, width), kernel kh x kw."""

    channels: int
    height: int
    width: int
    kh: int
    kw: int
    batch: int = 1

    def __str__(self) -> str:
        return f"{self.batch}x{self.channels}x{self.height}x{self.width}_k{self.kh}x{self.kw}"

    @classmethod
    def parse(cls, text: str) -> "Case":
        """Read a case from ``NxCxHxW_kKHxKW``, the form in which it is printed.

        Raises:
            InputError: `text` has another form, or a number is 0.
        """
        found = re.fullmatch(r"(\d+)x(\d+)x(\d+)x(\d+)_k(\d+)x(\d+)", text)
        if not found or not all(int(n) for n in found.groups()):
            raise InputError(f"a case is written NxCxHxW_kKHxKW (1x128x96x96_k31x31), got {text!r}")
        batch, channels, height, width, kh, kw = map(int, found.groups())
        return cls(channels, height, width, kh, kw, batch)

    @property
    def flops(self) -> int:
        """The operations of a direct convolution: an addition and a multiplication per tap."""
        return 2 * self.batch * self.channels * self.height * self.width * self.kh * self.kw


class DwconvContest:
    """A contest of our op and PyTorch's ways for one case and direction.

    The candidates are our op on contiguous and on channels_last tensors (``ours``,
    ``ours_channels_last``), PyTorch's convolution on both (``nchw``, ``channels_last``), and
    ``fft``: ``torch.fft`` with the smallest sizes without prime factors above 7 that compute the
    wanted outputs.

    Args:
        case: the shapes.
        direction: one of `DIRECTIONS`.
        dtype: "float32" or "bfloat16".
        algorithm: the algorithm of our op.
        seconds: the time for each candidate.
    """

    def __init__(
        self,
        case: Case,
        direction: str,
        dtype: str = "float32",
        algorithm: str = "auto",
        seconds: float = 0.5,
    ):
        self.case, self.direction, self.dtype, self.algorithm = case, direction, dtype, algorithm
        inputs = [t.to(DTYPES[dtype]) for t in random_inputs(case, direction)]
        exact = candidates(case, direction, [t.double() for t in inputs], algorithm)[FFT]()
        self.contest = Contest(candidates(case, direction, inputs, algorithm), seconds)
        self.errors = {n: relative_error(y, exact) for n, y in self.contest.results.items()}
        self.contest.results.clear()
        for name in self.wrong():
            self.contest.leave_out(name)

    def wrong(self) -> dict[str, float]:
        """Return the errors of the candidates with a wrong result, which are not timed."""
        return {n: e for n, e in self.errors.items() if not e <= WRONG[self.dtype]}

    def record(self) -> dict:
        """Return the record as JSON values: the case, and errors and milliseconds by candidate."""
        return {
            "bench": "dwconv",
            "case": str(self.case),
            "direction": self.direction,
            "dtype": self.dtype,
            "algorithm": self.algorithm,
            "gflop": self.case.flops / 1e9,
            "errors": {name: float(f"{e:.3g}") for name, e in self.errors.items()},
            "timings": {name: t.in_ms() for name, t in self.contest.timings().items()},
        }


def random_inputs(case: Case, direction: str, device: str = "cpu") -> list[Tensor]:
    """Return random (x, weight), (grad, weight) or (grad, x) in float32, made on the device."""
    g = torch.Generator(device).manual_seed(0)
    image = (case.batch, case.channels, case.height, case.width)
    second = image if direction == "grad_weight" else (case.channels, 1, case.kh, case.kw)
    return [torch.randn(shape, generator=g, device=device) for shape in (image, second)]


def candidates(
    case: Case, direction: str, inputs: list[Tensor], algorithm: str = "auto"
) -> dict[str, Callable[[], Tensor]]:
    """Return the candidates of `DwconvContest` by name, as functions without arguments."""
    a, b = inputs
    a_cl = a.to(memory_format=torch.channels_last)
    b_cl = b.to(memory_format=torch.channels_last)
    size = (case.kh, case.kw)
    if direction == "grad_weight":
        return {
            OURS: lambda: depthwise_conv2d_grad_weight(a, b, size, algorithm=algorithm),
            OURS_CL: lambda: depthwise_conv2d_grad_weight(a_cl, b_cl, size, algorithm=algorithm),
            NCHW: lambda: _torch_grad_weight(a, b, size),
            CL: lambda: _torch_grad_weight(a_cl, b_cl, size),
            FFT: lambda: fft_grad_weight(a, b, size),
        }
    ours = depthwise_conv2d if direction == "forward" else depthwise_conv2d_grad_x
    theirs = _torch_forward if direction == "forward" else _torch_grad_x
    fft = fft_forward if direction == "forward" else fft_grad_x
    return {
        OURS: lambda: ours(a, b, algorithm=algorithm),
        OURS_CL: lambda: ours(a_cl, b, algorithm=algorithm),
        NCHW: lambda: theirs(a, b),
        CL: lambda: theirs(a_cl, b_cl),
        FFT: lambda: fft(a, b),
    }


def _torch_forward(x: Tensor, weight: Tensor) -> Tensor:
    kh, kw = weight.shape[-2:]
    return F.conv2d(x, weight, padding=(kh // 2, kw // 2), groups=x.shape[1])


def _torch_grad_x(grad: Tensor, weight: Tensor) -> Tensor:
    return _torch_backward(grad, grad, weight, [True, False, False])[0]


def _torch_grad_weight(grad: Tensor, x: Tensor, size: tuple[int, int]) -> Tensor:
    return _torch_backward(grad, x, x.new_empty((x.shape[1], 1, *size)), [False, True, False])[1]


def _torch_backward(grad: Tensor, x: Tensor, weight: Tensor, mask: list[bool]):
    kh, kw = weight.shape[-2:]
    return torch.ops.aten.convolution_backward(
        grad, x, weight, None, [1, 1], [kh // 2, kw // 2], [1, 1], False, [0, 0], x.shape[1], mask
    )


# Convolution by torch.fft. A circular transform of H + K//2 points is enough, because only outputs
# that "same" padding leaves out wrap around.


def fft_forward(x: Tensor, weight: Tensor) -> Tensor:
    """Return `depthwise_conv2d` of x (N,C,H,W) by three calls of torch.fft."""
    return fft_grad_x(x, weight.flip(-2, -1))


def fft_grad_x(grad: Tensor, weight: Tensor) -> Tensor:
    """Return `depthwise_conv2d_grad_x` by three calls of torch.fft."""
    (height, width), (kh, kw) = grad.shape[-2:], weight.shape[-2:]
    wide, narrow = _wide(grad, weight)
    s = (_smooth(height + kh // 2), _smooth(width + kw // 2))
    # A kernel that is larger than this would be cut by the transform.
    s = (max(s[0], _smooth(kh)), max(s[1], _smooth(kw)))
    spectrum = torch.fft.rfft2(wide, s) * torch.fft.rfft2(narrow[:, 0], s)
    y = torch.fft.irfft2(spectrum, s)
    p, q = kh // 2, kw // 2
    return y[..., p : p + height, q : q + width].to(grad.dtype)


def fft_grad_weight(grad: Tensor, x: Tensor, size: tuple[int, int]) -> Tensor:
    """Return `depthwise_conv2d_grad_weight` by three calls of torch.fft."""
    (height, width), (kh, kw) = grad.shape[-2:], size
    p, q = kh // 2, kw // 2
    # Shifts from -p to p must differ modulo the size also where the kernel is larger than the
    # image.
    s = (max(_smooth(height + p), _smooth(kh)), max(_smooth(width + q), _smooth(kw)))
    a, b = _wide(grad, x)
    spectrum = (torch.fft.rfft2(a, s).conj() * torch.fft.rfft2(b, s)).sum(0)
    y = torch.fft.irfft2(spectrum, s).roll((p, q), (-2, -1))
    return y[:, None, :kh, :kw].to(grad.dtype)


def _wide(*tensors: Tensor) -> Iterator[Tensor]:
    """Return the tensors as torch.fft takes them: bfloat16 as float32."""
    return (t.float() if t.dtype == torch.bfloat16 else t for t in tensors)


def _smooth(n: int) -> int:
    """Return the smallest number from `n` on that has no prime factor above 7."""
    while True:
        rest = n
        for p in (2, 3, 5, 7):
            while rest % p == 0:
                rest //= p
        if rest == 1:
            return n
        n += 1


def relative_error(y: Tensor, truth: Tensor) -> float:
    """Return |y - truth| / |truth|, L2 norms, in float64."""
    return ((y.double() - truth).norm() / truth.norm()).item()
