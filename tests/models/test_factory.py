"""Models that a user's own function makes."""

import hashlib

import pytest
from torch import nn

from cba_fast.errors import InputError
from cba_fast.models.factory import model_from_factory, source_digest

CODE = """
from {neighbour} import WIDTH
from torch import nn

def make(classes=2):
    return nn.Linear(WIDTH, classes)

def broken():
    raise KeyError("weights")

def number():
    return 3

made = make()
"""


@pytest.fixture
def code(tmp_path, monkeypatch):
    """Write a file, its neighbour, and a package with the same code."""
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")  # undoes what is added to the path
    monkeypatch.chdir(tmp_path)
    (tmp_path / "widths_of_mine.py").write_text("WIDTH = 5")
    (tmp_path / "mine.py").write_text(CODE.format(neighbour="widths_of_mine"))
    package = tmp_path / "package_of_mine"
    package.mkdir()
    (package / "__init__.py").write_text("WIDTH = 7")
    (package / "models.py").write_text(CODE.format(neighbour="package_of_mine"))
    return tmp_path


def test_files_and_packages(code):
    assert model_from_factory("mine.py:make").in_features == 5
    assert model_from_factory(f"{code}/mine.py:make", classes=4).out_features == 4
    made = model_from_factory("package_of_mine.models:make")
    assert isinstance(made, nn.Linear)
    assert made.in_features == 7


def test_the_digest_is_of_the_file_named(code):
    digest = hashlib.sha256((code / "mine.py").read_bytes()).hexdigest()
    copy = code / "copy"
    copy.mkdir()
    (copy / "mine.py").write_bytes((code / "mine.py").read_bytes())
    assert source_digest("package_of_mine.models:make") != digest
    for folder in code, copy:
        assert model_from_factory(f"{folder}/mine.py:make").in_features == 5
        (code / "mine.py").unlink(missing_ok=True)  # the first of two equal files goes
    assert source_digest(f"{copy}/mine.py:make") == digest


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mine.py", "path/to/file.py:function, got 'mine.py'"),
        ("mine.py:", "got 'mine.py:'"),
        ("gone.py:make", "no file gone.py"),
        ("gone.package:make", "gone.package cannot be imported: ModuleNotFoundError"),
        ("mine.py:gone", "mine.py has no function 'gone'$"),
        ("mine.py:made", "no function 'made', but the Linear of that name; did you mean make?"),
        ("mine.py:WIDTH", "no function 'WIDTH', but the int of that name"),
        ("package_of_mine:models", "no function 'models', but the module of that name"),
        ("mine.py:broken", "mine.py:broken raised KeyError: 'weights'"),
        ("mine.py:number", r"must return a torch.nn.Module, got int"),
    ],
)
def test_what_cannot_be_called(code, name, words):
    with pytest.raises(InputError, match=words):
        model_from_factory(name)
