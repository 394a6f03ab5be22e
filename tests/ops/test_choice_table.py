"""Tables of measured convolutions: kinds of calls, which table is asked, files without use."""

import json
import warnings

import pytest
import torch

from cba_fast.errors import CbaWarning
from cba_fast.ops import choice_table, depthwise_conv2d, dwconv, dwconv_choice
from cba_fast.ops.choice_table import OURS, SHIPPED, USER, Call, Table, read
from cba_fast.ops.dwconv_choice import RULE, TABLES, explain
from cba_fast.ops.places import HARDWARE, SOFTWARE, place_of

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
CL = torch.channels_last
CPU = torch.device("cpu")
CASE = "forward float32 contiguous 1x32x12x12_k13x13"


def meta(*shape, dtype=BF16, memory_format=torch.contiguous_format):
    return torch.empty(shape, dtype=dtype, device="meta", memory_format=memory_format)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Make an empty folder that of the user's tables, and forget all tables before and after."""
    monkeypatch.setenv("CBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(choice_table, "SHIPPED", tmp_path / "shipped")
    choice_table.forget()
    yield tmp_path
    choice_table.forget()


def a_table(cases, folder, *, source=USER, **place):
    place = place_of(CPU) | place
    name = choice_table.file_name(place)
    table = Table(place, cases, path=(folder if source == USER else folder / "shipped") / name)
    table.write()
    choice_table.forget()
    return table


@pytest.mark.parametrize(
    ("image", "kernel_size", "name"),
    [
        (meta(64, 512, 24, 24), (27, 27), "forward half contiguous by8 64x512x28x28_k31x31"),
        (meta(7, 127, 28, 28), (31, 31), "forward half contiguous by4 1x32x28x28_k31x31"),
        (meta(1, 128, 20, 40), (51, 5), "forward half contiguous by4 1x128x56x56_k51x5"),
        (meta(1, 64, 7, 7, dtype=FP16), (7, 1), "forward half contiguous by1 1x32x7x7_k7x1"),
        (
            meta(9, 64, 96, 96, memory_format=CL, dtype=FP32),
            (3, 3),
            "forward float32 channels_last by8 8x32x112x112_k3x3",
        ),
        (meta(2, 64, 96, 96, dtype=FP16), (5, 5), None),  # PyTorch has another kernel for it
        (meta(2, 31, 96, 96), (9, 9), None),
        (meta(2, 64, 300, 300), (9, 9), None),
        (meta(0, 64, 96, 96), (9, 9), None),
        (meta(4, 64, 48, 96)[1:], (9, 9), "forward half contiguous by8 1x32x112x112_k9x9"),
    ],
)
def test_kinds(image, kernel_size, name):
    call = Call.of("forward", image, kernel_size)
    assert next(iter(call.kinds(aligned=True)), None) == name
    assert Call.parse(str(call)) == call
    if name and image.dtype == FP16:
        assert call.kinds(aligned=False) == []
    elif name:
        assert call.kinds(aligned=False)[0] == name.replace(name.split()[3] + " ", "")


def test_a_kind_with_fewer_images_comes_next():
    call = Call("forward", "float32", "contiguous", 64, 32, 12, 12, 13, 13)
    kinds = [f"forward float32 contiguous {n}x32x14x14_k13x13" for n in (64, 8, 1)]
    assert call.kinds(aligned=False) == kinds


@pytest.mark.parametrize(
    "image",
    [
        meta(2, 64, 96, 96, dtype=torch.float64),
        meta(2, 64, 96, 104)[..., 8:],  # rows of other strides
        meta(2, 64, 48, 96).transpose(2, 3),
        meta(2, 72, 48, 96, memory_format=CL)[:, 8:],
    ],
)
def test_calls_that_are_never_measured(image):
    assert Call.of("forward", image, (9, 9)) is None


def test_the_measured_case_comes_before_its_kind(folder):
    other = CASE.replace("12x12", "14x14")
    table = a_table({CASE: {"fft": 1.0, "direct": 2.0}, other: {"fft": 9.0, "direct": 1.0}}, folder)
    both = ("fft", "direct")
    assert table.method(Call.parse(CASE), both) == "fft"
    assert table.method(Call.parse(other), both) == "direct"
    # In the worst case of the kind "direct" takes 2 times as long, and "fft" 9 times.
    near = Call.parse(CASE.replace("12x12", "13x13"))
    assert table.method(near, both) == "direct"
    assert table.method(near, ("fft", "torch")) == "fft"
    assert table.method(near, ("torch",)) is None
    assert table.method(near._replace(batch=20), both) == "direct"
    assert table.method(near._replace(channels=31), both) is None
    assert table.method(near._replace(direction="grad_x"), both) is None


def test_ties_go_to_pytorch_and_its_other_ways_are_no_methods(folder):
    table = a_table({CASE: {"fft": 1.0, "torch": 1.0, "torch_fft": 0.5}}, folder)
    assert table.method(Call.parse(CASE), ("fft", "torch")) == "torch"


def test_a_method_must_win_where_the_kernel_is_smallest(folder):
    call = Call("forward", "float32", "contiguous", 1, 32, 24, 24, 31, 31)
    # 23x23 is of the kind of 31x31 and has 0.55 of its taps.
    assert call.smallest_share() == pytest.approx((23 / 31) ** 2)
    assert call._replace(kh=27, kw=5).smallest_share() == pytest.approx(23 / 27)
    assert call._replace(kh=7, kw=1).smallest_share() == 1
    for ours, best in ((1.0, "fft"), (1.2, "torch")):
        table = a_table({str(call): {"fft": ours, "torch": 2.0}}, folder)
        assert table.method(call, ("fft", "torch")) == "fft"
        assert table.method(call._replace(height=23), ("fft", "torch")) == best


def test_plain_weight_gradients_are_taken_only_where_they_were_checked(folder):
    call = Call("grad_weight", "float32", "contiguous", 1, 32, 24, 24, 31, 31)
    table = a_table({str(call): {"conv2d": 1.0, "torch": 2.0}}, folder)
    assert table.method(call, ("conv2d", "torch")) == "conv2d"
    assert table.method(call._replace(height=23), ("conv2d", "torch")) == "torch"


def test_the_users_table_comes_first_then_the_shipped_one_then_the_rule(folder):
    image = torch.zeros(1, 32, 12, 12)
    other = torch.zeros(1, 32, 48, 48)
    assert explain("forward", image, (13, 13)) == ("fft", RULE)
    shipped = a_table({CASE: {"fft": 3.0, "torch": 1.0}}, folder, source=OURS)
    assert explain("forward", image, (13, 13)) == ("torch", str(shipped.path))
    mine = a_table({CASE: {"fft": 3.0, "direct": 1.0, "torch": 2.0}}, folder)
    assert explain("forward", image, (13, 13)) == ("direct", str(mine.path))
    assert explain("forward", image, (13, 13), "fft") == ("fft", str(mine.path))
    assert explain("forward", other, (13, 13)) == ("fft", RULE)
    assert dwconv_choice.choose("forward", image, (13, 13), "cpp", "auto") == "direct"
    assert dwconv_choice.choose("forward", image, (13, 13), "auto", "direct") == "direct"
    assert [t.source for t in choice_table.tables(CPU)] == [USER, OURS]


def test_shipped_tables_are_of_this_processor_with_the_nearest_threads(folder):
    threads = torch.get_num_threads()
    for n, time in ((threads, 1.0), (4 * threads, 9.0)):
        a_table({CASE: {"fft": time, "direct": 2.0}}, folder, source=OURS, threads=n, device="AMD")
    assert explain("forward", torch.zeros(1, 32, 12, 12), (13, 13)).method == "fft"
    for key in ("kind", "vendor", "arch"):
        for path in (folder / "shipped").iterdir():
            path.unlink()
        a_table({CASE: {"fft": 9.0, "direct": 2.0}}, folder, source=OURS, **{key: "other"})
        assert choice_table.tables(CPU) == []


def test_a_changed_table_changes_the_next_call(folder):
    x, weight = torch.randn(1, 32, 12, 12), torch.randn(32, 1, 13, 13)
    depthwise_conv2d(x, weight)
    a_table({CASE: {"torch": 1.0, "fft": 2.0}}, folder)
    assert not dwconv._launchers
    y = depthwise_conv2d(x, weight)
    assert torch.equal(y, depthwise_conv2d(x, weight, backend="torch"))
    assert not torch.equal(y, depthwise_conv2d(x, weight, algorithm="fft"))


def test_another_number_of_threads_has_a_table_of_its_own(folder):
    x, weight = torch.randn(1, 32, 12, 12), torch.randn(32, 1, 13, 13)
    threads = torch.get_num_threads()
    a_table({CASE: {"torch": 1.0, "fft": 2.0}}, folder, threads=threads + 1)
    assert torch.equal(depthwise_conv2d(x, weight), depthwise_conv2d(x, weight, algorithm="fft"))
    torch.set_num_threads(threads + 1)
    try:
        y, by_torch = depthwise_conv2d(x, weight), depthwise_conv2d(x, weight, backend="torch")
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(y, by_torch)


def test_a_table_is_asked_at_the_first_call_of_a_layout_only(folder, monkeypatch):
    asked = []
    tables = choice_table.tables
    monkeypatch.setattr(choice_table, "tables", lambda device: asked.append(1) or tables(device))
    x, weight = torch.randn(1, 32, 12, 12), torch.randn(32, 1, 13, 13)
    for _ in range(3):
        depthwise_conv2d(x, weight)
    assert len(asked) == 1


DAMAGED = [
    ("{", "not valid JSON"),
    ("[]", "this is no table"),
    ({"format": 0}, "it has format 0, this version reads 1"),
    ({"cases": []}, "must be objects"),
    ({"cases": {"forward": {}}}, "'forward' is no call of the convolution"),
    ({"cases": {CASE: {"fft": -1}}}, "not all times are positive"),
    ({"cases": {CASE: {"fft": "1"}}}, "not all times are positive"),
    ({"cases": {CASE: 1}}, "not all times are positive"),
    ({"place": {}}, "'place' lacks kind"),
]
# Shipped tables are of other devices and versions.
FOREIGN = [
    ({"device": "another"}, "it was measured with device another, here it is"),
    ({"torch": "2.6.0"}, "it was measured with torch 2.6.0, here it is"),
    ({"cba_fast": "0.0.1"}, "it was measured with cba_fast 0.0.1"),
]


@pytest.mark.parametrize(
    ("source", "change", "message"),
    [(s, *d) for s in (USER, OURS) for d in DAMAGED] + [(USER, *f) for f in FOREIGN],
)
def test_tables_that_cannot_be_used_are_named_once(folder, change, message, source):
    path = a_table({CASE: {"torch": 1.0, "fft": 2.0}}, folder, source=source).path
    found = json.loads(path.read_text())
    if isinstance(change, dict):
        (key, value), place = *change.items(), found["place"]
        if key in place:
            place[key] = value
        else:
            found[key] = value
        change = json.dumps(found)
    path.write_text(change)
    choice_table.forget()
    x, weight = torch.randn(1, 32, 12, 12), torch.randn(32, 1, 13, 13)
    with pytest.warns(CbaWarning, match="is not used") as caught:
        depthwise_conv2d(x, weight)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        depthwise_conv2d(x, weight, weight[:, 0, 0, 0])
    assert str(path) in str(caught[0].message)
    assert message in str(caught[0].message)
    assert explain("forward", x, (13, 13)).source == RULE


def test_a_folder_in_the_tables_place_is_no_crash(folder):
    (folder / choice_table.file_name(place_of(CPU))).mkdir()
    with pytest.warns(CbaWarning, match="is not used: Is a directory"):
        assert choice_table.tables(CPU) == []


def test_without_a_table_nothing_is_said(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choice_table.tables(CPU) == []


def test_the_shipped_tables_can_be_read():
    for path in SHIPPED.glob("dwconv_*.json"):
        table = read(path, OURS)
        assert path.name == choice_table.file_name(table.place)
        assert table.place.keys() == {*HARDWARE, *SOFTWARE}
        assert {Call.parse(text).direction for text in table.cases} == set(TABLES)


def test_a_written_table_is_read_again(folder):
    table = a_table({CASE: {"fft": 1.25}, CASE.replace("_k13", "_k7"): {}}, folder)
    again = read(table.path)
    assert (again.cases, again.wrong, again.place) == (table.cases, {}, table.place)
