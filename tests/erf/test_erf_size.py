"""ERF sizes and the input gradients below them."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cba_fast import erf
from cba_fast.data import Report
from cba_fast.errors import ImageError, InputError


class Linear(nn.Module):
    """logits = W vec(x): every gradient is known in closed form."""

    def __init__(self, weight: torch.Tensor, study_softmax: bool | None = None):
        super().__init__()
        self.weight = nn.Parameter(weight)
        if study_softmax is not None:
            self.study_softmax = study_softmax

    def forward(self, x):
        return x.flatten(1) @ self.weight.T


class Net(nn.Module):
    """A small classifier with batch norm and dropout, whose modes matter."""

    def __init__(self, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 5, padding=2), nn.BatchNorm2d(8), nn.GELU(), nn.Dropout(0.5)
        )
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


def images(n: int, size: int = 8, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def softmax64(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max())
    return e / e.sum()


@pytest.mark.parametrize("study_softmax", [False, True])
def test_gradient_of_a_linear_model_is_the_formula(study_softmax):
    rng = np.random.default_rng(3)
    w, x = rng.normal(size=(5, 3 * 4 * 4)), rng.normal(size=(2, 3, 4, 4))
    model = Linear(torch.tensor(w), study_softmax)
    found = erf.input_gradient(model, torch.tensor(x)).numpy()
    for n in range(2):
        s = softmax64(w @ x[n].ravel())
        jac = np.diag(s) - np.outer(s, s)  # d softmax / d z
        if study_softmax:
            outer = softmax64(s)
            jac = (np.diag(outer) - np.outer(outer, outer)) @ jac
            s = outer
        expected = (jac[s.argmax()] @ w).reshape(3, 4, 4)
        np.testing.assert_allclose(found[n], expected, rtol=1e-12, atol=1e-15)


def test_gradients_of_logit_and_logprob():
    w, x = torch.randn(5, 48, dtype=torch.float64), torch.randn(1, 3, 4, 4, dtype=torch.float64)
    z = (w @ x.flatten()).numpy()
    top = int(z.argmax())
    logit = erf.input_gradient(Linear(w), x, score="logit").flatten()
    assert torch.equal(logit, w[top])
    logprob = erf.input_gradient(Linear(w, True), x, score="logprob").flatten()
    expected = w[top].numpy() - softmax64(z) @ w.numpy()
    np.testing.assert_allclose(logprob.numpy(), expected, rtol=1e-12, atol=1e-14)


def study_gradient(model, x, twice):
    """One image, as the study's script does it: backward through everything."""
    x = x.clone().requires_grad_(True)
    prob = F.softmax(model(x), dim=1)
    if twice:
        prob = F.softmax(prob, dim=1)
    prob[0, prob.argmax(1)[0]].backward()
    return x.grad


@pytest.mark.parametrize("twice", [False, True])
def test_equals_the_study_bit_for_bit(twice):
    model, x = Net().eval(), images(1)
    expected = study_gradient(model, x, twice)
    assert torch.equal(erf.input_gradient(model, x, study_softmax=twice), expected)


def test_the_model_attribute_chooses_the_double_softmax():
    model, x = Net().eval(), images(2)
    once = erf.input_gradient(model, x)
    model.study_softmax = True
    twice = erf.input_gradient(model, x)
    assert not torch.equal(once, twice)
    assert torch.equal(erf.input_gradient(model, x, study_softmax=False), once)


def test_batch_equals_single_images():
    model, x = Net(), images(5)
    whole = erf.input_gradient(model, x)
    single = torch.cat([erf.input_gradient(model, x[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(whole, single, rtol=1e-5, atol=1e-9)


def test_weights_are_frozen_and_everything_is_restored():
    model, x = Net(), images(2)
    model.body[0].weight.requires_grad_(False)
    model.body[1].eval()
    seen = {}
    weight_grads = []
    handle = model.head.register_forward_hook(
        lambda m, i, o: seen.update(
            training=[k.training for k in model.modules()],
            trainable=[p.requires_grad for p in model.parameters()],
        )
    )
    model.head.weight.register_hook(weight_grads.append)
    flags = [p.requires_grad for p in model.parameters()]
    modes = [m.training for m in model.modules()]
    running = model.body[1].running_mean.clone()
    erf.input_gradient(model, x)
    handle.remove()
    assert not any(seen["training"])
    assert not any(seen["trainable"])
    assert not weight_grads
    assert all(p.grad is None for p in model.parameters())
    assert [p.requires_grad for p in model.parameters()] == flags
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(model.body[1].running_mean, running)
    assert x.grad is None
    assert not x.requires_grad


def test_flags_are_restored_after_an_error():
    model = Net()
    with pytest.raises(InputError, match="takes .N, 3, H, W."):
        erf.input_gradient(model, torch.zeros(1, 4, 8, 8))  # 4 channels
    assert model.training
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_works_where_the_caller_has_switched_gradients_off(context):
    model, x = Net(), images(2)
    expected = erf.input_gradient(model, x)
    with context():
        assert torch.equal(erf.input_gradient(model, x.clone()), expected)


def test_bad_arguments_are_named():
    model = Net()
    with pytest.raises(ValueError, match="got 'probs'"):
        erf.input_gradient(model, images(1), score="probs")
    with pytest.raises(ValueError, match=r"\(3, 8, 8\)"):
        erf.input_gradient(model, images(1)[0])
    for measure in (erf.erf_sizes, erf.input_gradient):
        with pytest.raises(ValueError, match=r"a floating \(N,C,H,W\) tensor, got ndarray"):
            measure(model, images(1).numpy())
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        erf.erf_sizes(model, images(1), batch_size=0)
    with pytest.raises(ValueError, match="int64"):
        erf.input_gradient(model, torch.zeros(1, 3, 8, 8, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"\(N,K\) logits, got \(1, 8, 64\)"):
        erf.input_gradient(nn.Sequential(model.body, nn.Flatten(2)), images(1))


def weighted(values: np.ndarray) -> tuple[Linear, torch.Tensor]:
    """Return a model and an image: its top-1 logit has the gradient `values` in each channel."""
    w = torch.zeros(2, 3, *values.shape, dtype=torch.float64)
    w[1] = torch.tensor(values)
    return Linear(w.flatten(1)), torch.ones(1, 3, *values.shape, dtype=torch.float64)


@pytest.mark.parametrize("p", [0.1, 0.2, 0.35, 0.5, 0.99, 1.0])
def test_uniform_gradient_fills_the_share_p_of_the_pixels(p):
    model, x = weighted(np.full((6, 7), 0.5))  # powers of two: the sums are exact
    assert erf.erf_sizes(model, x, p, score="logit") == math.ceil(p * 6 * 7)


def test_sizes_by_hand_with_ties_and_zeros():
    model, x = weighted(np.array([[4.0, 1, 0], [2, 1, 0]]))
    found = erf.erf_sizes(model, x, [0.25, 0.5, 0.51, 0.75, 0.8, 1.0], score="logit")
    # sums 4, 6, 7, 8 of a total of 8; a sum that equals p * total is enough
    assert found.dtype == np.float32
    assert found.tolist() == [[1, 1, 2, 2, 3, 4]]


def test_one_p_gives_a_vector_and_several_a_matrix():
    model, x = Net(), images(3)
    one, many = erf.erf_sizes(model, x, 0.2), erf.erf_sizes(model, x, [0.2, 0.5])
    assert one.shape == (3,)
    assert many.shape == (3, 2)
    assert np.array_equal(one, many[:, 0])
    assert (many[:, 0] < many[:, 1]).all()
    assert erf.erf_sizes(model, x, [0.2]).shape == (3, 1)


def test_a_gradient_of_zero_has_size_zero():
    model, x = Linear(torch.tensor([[0.0] * 48, [100.0] * 48])), torch.ones(1, 3, 4, 4)
    assert erf.erf_sizes(model, x).tolist() == [0]  # the softmax saturates
    assert erf.erf_sizes(model, x, 0.5, score="logit").tolist() == [8]


def test_a_gradient_that_is_not_finite_is_refused():
    model, x = Net(), images(3)
    x[1, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"image\(s\) \[1\]"):
        erf.erf_sizes(model, x, batch_size=3)
    with pytest.raises(ValueError, match=r"image\(s\) \[1\]"):
        erf.erf_sizes(model, x, batch_size=1)


def test_sample_is_the_shuffle_of_the_old_generator():
    # numpy.random.RandomState(0).shuffle(arange(10)), written down once.
    assert erf.sample_indices(10, 10, 0).tolist() == [2, 8, 4, 9, 1, 6, 7, 3, 0, 5]
    assert erf.sample_indices(10, 3, 0).tolist() == [2, 8, 4]
    assert sorted(erf.sample_indices(5, 200, 7)) == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="positive"):
        erf.sample_indices(0, 1)


class Items(torch.utils.data.Dataset):
    """A data set with an unreadable, a truncated and a NaN image; counts what is read."""

    def __init__(self, n: int = 9, bad=(2,), truncated=(3,), nan=(5,)):
        self.images = images(n, seed=5)
        self.bad, self.truncated = bad, truncated
        for i in nan:
            self.images[i, 0] = float("nan")
        self.read = []

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        self.read.append(i)
        error = f"cannot read image x/{i}.jpg" if i in self.bad else ""
        return {
            "index": i,
            "image": self.images[i],
            "truncated": i in self.truncated,
            "error": error,
        }


@pytest.mark.parametrize("batch_size", [1, 2, 4, 20])
def test_measuring_sets_failed_images_aside(batch_size):
    model, data = Net(), Items()
    walk = erf.Walk(data, range(8, -1, -1), batch_size=batch_size)
    found = erf.measure_erf_sizes(model, walk)
    assert found.indices.tolist() == [8, 7, 6, 4, 3, 1, 0]
    assert dict(walk.report.failed) == {
        5: "its input gradient is not finite",
        2: "cannot read image x/2.jpg",
    }
    assert walk.report.truncated == [3]
    expected = erf.erf_sizes(model, data.images[found.indices], batch_size=batch_size)
    assert np.abs(found.sizes - expected).max() <= 1  # other neighbours in the batch
    assert found.num_zero == 0


def test_a_strict_walk_ends_at_the_failed_image():
    walk = erf.Walk(Items(), range(9), report=Report(strict=True, name=lambda i: f"x/{i}.jpg"))
    with pytest.raises(ImageError, match=r"x/2\.jpg"):
        erf.measure_erf_sizes(Net(), walk)


def test_all_images_failed_gives_no_size():
    found = erf.measure_erf_sizes(Net(), erf.Walk(Items(), [2, 5]), [0.2, 0.5])
    assert found.sizes.shape == (0, 2)
    found = erf.measure_erf_sizes(Net(), erf.Walk(Items(), [2, 5]), np.float32(0.2))
    assert found.sizes.shape == (0,)
    assert found.num_zero == 0


class Killed(BaseException):
    """Stands for the signal that ends a run."""


def killing_progress(after: int):
    def progress(steps, count):
        for n, step in enumerate(steps):
            if n == after:
                raise Killed
            yield step

    return progress


@pytest.mark.parametrize("after", [0, 1, 2, 3])
@pytest.mark.parametrize("shares", [0.2, [0.2, 0.5]])
def test_a_killed_run_continues_to_the_same_result(tmp_path, after, shares):
    model, order = Net(), erf.sample_indices(9, 9, 0)

    def walk(data, **kwargs):
        partial = erf.Partial(tmp_path / "sizes.npy", interval_s=0)
        return erf.Walk(data, order, batch_size=2, partial=partial, **kwargs)

    whole_walk = erf.Walk(Items(), order, batch_size=2)
    whole = erf.measure_erf_sizes(model, whole_walk, shares)
    with pytest.raises(Killed):
        erf.measure_erf_sizes(model, walk(Items(), progress=killing_progress(after)), shares)
    data = Items()
    again = walk(data)
    found = erf.measure_erf_sizes(model, again, shares)
    assert again.resumed == 2 * after
    assert data.read == order[2 * after :].tolist()
    assert np.array_equal(found.sizes, whole.sizes)
    assert np.array_equal(found.indices, whole.indices)
    assert again.report.failed == whole_walk.report.failed
    assert again.report.truncated == whole_walk.report.truncated
    assert [p.name for p in tmp_path.iterdir()] == [".sizes.npy.partial.npz"]


def test_damaged_partial_results_are_not_taken(tmp_path, caplog):
    first = erf.Partial(tmp_path / "a.npy")
    first.save(lambda: {"sizes": np.ones(3)}, force=True)
    assert first.load()["sizes"].tolist() == [1, 1, 1]
    first.path.write_bytes(b"PK\x03\x04 cut")
    assert first.load() is None
    assert "cannot be read" in caplog.text


def test_partial_results_are_not_written_at_every_step(tmp_path):
    partial = erf.Partial(tmp_path / "a.npy", interval_s=3600)
    partial.save(lambda: pytest.fail("written"))
    assert not partial.path.exists()
