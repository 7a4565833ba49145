"""Images: what each source gives, and what it says when it cannot."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from saebench_core.errors import InputError, MissingPackageError
from saebench_core.sources import ImageSet, ImageSource

SOURCES = TypeAdapter(ImageSource)


def source(**config):
    return SOURCES.validate_python(config)


def paint(path: Path, colour, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (4, 4), colour).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b", "a"):
        paint(tmp_path / "red_fox" / f"{name}.png", (255, 0, 0))
    paint(tmp_path / "blue" / "deep" / "x.jpg", (0, 0, 255))
    (tmp_path / "empty").mkdir()
    (tmp_path / "blue" / "notes.txt").write_text("no image")
    return tmp_path


def test_folder_classes_are_its_sorted_subfolders(folder):
    images = source(type="image_folder", path=str(folder)).open()
    assert list(images.class_names) == ["blue", "red fox"]
    assert list(images.labels) == [0, 1, 1]
    assert len(images) == 3
    assert images.image(1).getpixel((0, 0)) == (255, 0, 0)


def test_folder_class_names_can_be_replaced(folder):
    images = source(type="image_folder", path=str(folder), class_names={"red_fox": "vulpes"}).open()
    assert list(images.class_names) == ["blue", "vulpes"]
    with pytest.raises(InputError, match="green"):
        source(type="image_folder", path=str(folder), class_names={"green": "x"}).open()


def test_transparent_parts_become_white(tmp_path):
    paint(tmp_path / "one" / "clear.png", (9, 9, 9, 0), "RGBA")
    image = source(type="image_folder", path=str(tmp_path)).open().image(0)
    assert image.mode == "RGB"
    assert image.getpixel((0, 0)) == (255, 255, 255)


def test_folder_fingerprint_follows_contents_not_place(folder, tmp_path_factory):
    first = source(type="image_folder", path=str(folder)).fingerprint()
    moved = tmp_path_factory.mktemp("moved") / "images"
    folder.rename(moved)
    assert source(type="image_folder", path=str(moved)).fingerprint() == first
    paint(moved / "blue" / "deep" / "x.jpg", (0, 255, 0))
    assert source(type="image_folder", path=str(moved)).fingerprint() != first


def test_folder_errors_name_the_place(tmp_path):
    with pytest.raises(InputError, match="absent"):
        source(type="image_folder", path=str(tmp_path / "absent")).open()
    with pytest.raises(InputError, match="no sub-folder with images"):
        source(type="image_folder", path=str(tmp_path)).open()
    (tmp_path / "class").mkdir()
    (tmp_path / "class" / "bad.png").write_bytes(b"not a picture")
    with pytest.raises(InputError, match=r"bad\.png"):
        source(type="image_folder", path=str(tmp_path)).open().image(0)


def test_digits_are_the_1797_of_scikit_learn():
    given = source(type="digits")
    images = given.open()
    assert len(images) == 1797
    assert images.class_names[7] == "seven"
    assert sorted(set(images.labels)) == list(range(10))
    assert images.image(0).size == (8, 8)
    assert images.image(0).getextrema()[0] == (0, 239)  # level 15 of 16
    assert all("{}" in template for template in given.templates)
    assert given.fingerprint() == source(type="digits").fingerprint()


def test_callable_returns_an_image_set(tmp_path, monkeypatch):
    (tmp_path / "my_pictures.py").write_text(
        "from PIL import Image\n"
        "from saebench_core import ImageSet\n"
        "def two(side):\n"
        "    return ImageSet(('x', 'y'), [0, 1], lambda index: Image.new('L', (side, side), index))\n"
        "def wrong():\n"
        "    return 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    given = source(type="callable", function="my_pictures:two", arguments={"side": 5})
    assert given.open().image(1).size == (5, 5)
    assert given.fingerprint()["source_sha256"]
    with pytest.raises(InputError, match="ImageSet"):
        source(type="callable", function="my_pictures:wrong").open()
    with pytest.raises(InputError, match="my_pictures:absent"):
        source(type="callable", function="my_pictures:absent").open()
    with pytest.raises(InputError, match="no_such_module"):
        source(type="callable", function="no_such_module:f").fingerprint()


def test_hub_dataset_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingPackageError, match="pip install"):
        source(type="hub_dataset", dataset="cifar10").open()


def test_hub_dataset_reads_columns(monkeypatch):
    class Rows(list):
        column_names = ("img", "fine")

        @property
        def features(self):
            return {"fine": type("ClassLabel", (), {"names": ["cat", "dog"]})()}

        def __getitem__(self, key):
            return [row[key] for row in self] if isinstance(key, str) else super().__getitem__(key)

    rows = Rows({"img": Image.new("L", (2, 2), value), "fine": value % 2} for value in range(3))
    calls = []
    fake = type("datasets", (), {"load_dataset": lambda *given, **named: calls.append((given, named)) or rows})
    monkeypatch.setitem(sys.modules, "datasets", fake)
    given = {"type": "hub_dataset", "dataset": "cifar", "image": "img", "label": "fine", "revision": "abc"}
    images = source(**given).open()
    assert (list(images.class_names), list(images.labels)) == (["cat", "dog"], [0, 1, 0])
    assert images.image(2).getpixel((0, 0)) == (2, 2, 2)
    assert calls == [(("cifar", None), {"split": "train", "revision": "abc"})]
    with pytest.raises(InputError, match="label"):
        source(type="hub_dataset", dataset="cifar", image="img").open()


@pytest.mark.parametrize(
    "config",
    [
        {"type": "folder", "path": "x"},
        {"type": "digits", "path": "x"},
        {"type": "digits", "templates": ["no place"]},
        {"type": "digits", "templates": []},
        {"type": "callable", "function": "no colon"},
    ],
)
def test_bad_configurations_are_refused(config):
    with pytest.raises(ValidationError):
        source(**config)


def test_labels_outside_the_classes_are_refused():
    with pytest.raises(InputError, match=r"\[2\]"):
        ImageSet(("a", "b"), [0, 2], lambda index: Image.new("L", (1, 1)))


def test_the_module_imports_nothing_heavy():
    code = (
        "import sys, saebench_core.sources.images\n"
        "assert not {'PIL', 'sklearn', 'datasets', 'open_clip'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
