"""Compiled feature maps: same outputs, one compilation, batches of any size."""

from pathlib import Path

import pytest
import timm
import torch
import torch._inductor.config
from torch import nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

import cba_fast.models  # noqa: F401  (registers our models)
from cba_fast.data import ImageRecord
from cba_fast.errors import InputError, ModelError
from cba_fast.models import inference_form
from cba_fast.runs.compiled import _FixedBatch, compiled_form
from cba_fast.runs.inference import iter_host_maps, report_on
from cba_fast.runs.settings import DataConfig, MapConfig, RunConfig
from cba_fast.wsol import METHODS, localize, register_method

CLASSES = 5


def images(n, side=64, seed=0):
    x = torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(seed))
    return x.to(memory_format=torch.channels_last)


def small_model(name="slak_nano"):
    torch.manual_seed(0)
    return inference_form(timm.create_model(name, num_classes=CLASSES), device="cpu")


class Counting:
    """A backend that runs the graphs as they are and notes them and the batch sizes they see."""

    def __init__(self):
        self.graphs, self.sizes = 0, []

    def __call__(self, graph, example_inputs):
        self.graphs += 1

        def run(*args):
            given = [a for a in args if torch.is_tensor(a) and a.shape[1:] == (3, 64, 64)]
            assert all(a.is_contiguous(memory_format=torch.channels_last) for a in given)
            self.sizes += [len(a) for a in given]
            return graph.forward(*args)

        return run


@pytest.fixture(autouse=True)
def fresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def test_one_compilation_serves_batches_of_every_size():
    model, counting = small_model("slak_flex_nano"), Counting()
    form = compiled_form(model, 4, counting)
    x = images(4)
    with torch.no_grad():
        want = model.forward_features(x)
        first = form.forward_features(x)
        graphs = counting.graphs
        for n in (3, 1, 4, 2):
            got = form.forward_features(x[:n])
            assert got.shape == want[:n].shape
            torch.testing.assert_close(got, want[:n], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(first, want, rtol=1e-4, atol=1e-5)
    assert first.untyped_storage().nbytes() == first.nbytes  # not a view of the graph's memory
    assert counting.graphs == graphs == 1
    assert counting.sizes == [4] * 5


def test_maps_come_from_compiled_features_in_one_compilation():
    model, counting = small_model(), Counting()
    form = compiled_form(model, 3, counting)
    for n in (3, 2):
        x = images(n, seed=n)
        want, got = localize(model, x, target=1), localize(form, x, target=1)
        assert (got.maps == want.maps).mean() > 0.99
        assert got.top5.tolist() == want.top5.tolist()
    assert counting.graphs == 1
    assert counting.sizes == [3] * 2


def test_networks_without_timms_methods_are_refused():
    with pytest.raises(InputError, match="Conv2d has no forward_features"):
        compiled_form(nn.Conv2d(3, 3, 1), 2)


def test_layers_inside_of_compiled_code_are_refused_and_not_named_as_the_way_out():
    model = timm.create_model("test_vit", img_size=64, num_classes=3).eval()
    form = compiled_form(model, 2, "eager")
    with pytest.raises(ModelError, match="for VisionTransformer: leave `compile` out"):
        localize(form, images(2), method="grad-cam")
    assert localize(model, images(2), method="grad-cam").maps.shape == (2, 64, 64)


@pytest.mark.parametrize(
    ("name", "maps", "reason"),
    [
        ("test_vit", MapConfig(method="grad-cam"), "explains a layer inside"),
        ("test_vit", MapConfig(method="chefer"), "cannot be combined with `method` chefer"),
        ("test_vit", MapConfig(method="gradients only"), "cannot be combined with `method`"),
        ("test_vit", MapConfig(), "no linear head over the mean of the tokens"),
        ("slak_nano", MapConfig(layer="stages.2"), "cannot be combined with `layer`"),
        ("slak_nano", MapConfig(method="pc1"), "PC1 needs square"),
    ],
)
def test_what_compiled_code_cannot_serve_is_refused_before_it_is_compiled(
    name, maps, reason, monkeypatch
):
    @register_method("gradients only")
    def gradients_only(attention_gradients):
        return attention_gradients[-1].mean(1)

    monkeypatch.setattr(_FixedBatch, "__call__", lambda *args, **options: pytest.fail("compiled"))
    model = timm.create_model(name, **({"img_size": 64} if "vit" in name else {})).eval()
    records = [ImageRecord("a.jpg", Path("images"), 0)]
    data, run = DataConfig("images", input_size=64), RunConfig(compile=True, device="cpu")
    try:
        with pytest.raises(InputError, match=reason) as told:
            iter_host_maps(model, records, data, run, maps, report_on(records, strict=True))
    finally:
        del METHODS["gradients only"]
    assert ("a.jpg" in str(told.value)) == (maps.method == "pc1")  # the others hold for all images


def test_the_head_of_a_vit_gets_compiled_features():
    model = timm.create_model("test_vit", img_size=64, num_classes=3).eval()
    with torch.no_grad():
        got = compiled_form(model, 2, "eager")(images(2))  # passes attn_mask=None
        torch.testing.assert_close(got, model(images(2)))


def test_the_model_itself_stays_as_it_was():
    model, counting = small_model(), Counting()
    form = compiled_form(model, 2, counting)
    assert form.head is model.head
    assert "forward_features" not in vars(model)
    with torch.no_grad():
        model.forward_features(images(2))
        with pytest.raises(ValueError, match="compiled for 2 images in a batch, got 3"):
            form.forward_features(images(3))
    assert counting.graphs == 0


def test_under_autocast():
    model = small_model()
    form = compiled_form(model, 3, "eager")
    x = images(2)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        want, got = model.forward_features(x), form.forward_features(x)
    assert got.dtype == want.dtype
    assert torch.corrcoef(torch.stack([got.float().flatten(), want.float().flatten()]))[0, 1] > 0.99


def test_a_failing_compiler_is_one_clear_error():
    def broken(graph, example_inputs):
        raise RuntimeError("no compiler found")

    form = compiled_form(small_model(), 2, broken)
    with torch.no_grad(), pytest.raises(InputError, match=r"cannot be compiled here \(`compile`\)"):
        form.forward_features(images(2))


@pytest.mark.parametrize("name", ["replknet_nano", "test_convnext"])
def test_on_a_gpu_a_network_is_one_graph(name, a_gpu):
    # On tensors without values: every break would be one more CUDA graph, and host time.
    with unset_fake_temporarily():
        model = small_model(name)
    for module in model.modules():
        for values in (module._parameters, module._buffers):
            for key, t in values.items():
                if t is not None:
                    there = torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cuda")
                    values[key] = nn.Parameter(there, requires_grad=False)
    counting = Counting()
    compiled = torch.compile(model.forward_features, backend=counting, fullgraph=True)
    x = a_gpu(2, 3, 64, 64, dtype=torch.float32, memory_format=torch.channels_last)
    with torch.no_grad():
        features = compiled(x)
    assert features.device.type == "cuda"
    assert counting.graphs == 1


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["replknet_nano", "slak_nano", "test_convnext"])
def test_cuda_graphs_give_the_features_of_the_eager_model(name):
    model = small_model(name).cuda()
    form = compiled_form(model, 4)
    with torch.no_grad():
        batches = [images(n, seed=n).cuda() for n in (4, 4, 4, 3, 1, 4)]
        got = [form.forward_features(x) for x in batches]  # all of them outlive the next replays
        for x, features in zip(batches, got):
            want = model.forward_features(x)
            torch.testing.assert_close(features, want, rtol=1e-2, atol=1e-2)


def test_on_cpus_the_weights_are_constants_of_the_compiler(monkeypatch):
    seen = []

    def compiled(function, **how):
        assert how["backend"] == "inductor"
        return lambda x: seen.append(torch._inductor.config.freezing) or function(x)

    monkeypatch.setattr(torch, "compile", compiled)
    compiled_form(small_model(), 2).forward_features(images(2))
    assert seen == [True]
    assert not torch._inductor.config.freezing
