"""Labelled images: from a folder, a hub's dataset, scikit-learn, or a Python function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import Field, field_validator

from saebench_core.errors import InputError, MissingPackageError
from saebench_core.interfaces.entry import Json, Model
from saebench_core.sources.files import fingerprint, locate
from saebench_core.sources.records import FUNCTION_PATTERN, call_function, check_column, function_digest
from saebench_core.store import content_key, file_sha256

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL import Image

__all__ = ["CallableImages", "DigitImages", "FolderImages", "HubImages", "ImageSet", "ImageSource"]

SUFFIXES: Final = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
DIGITS: Final = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def _image_files(folder: Path) -> Iterator[Path]:
    return iter(sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()))


def _opaque(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    from PIL import Image as images

    layer = image.convert("RGBA")
    return images.alpha_composite(images.new("RGBA", layer.size, "white"), layer).convert("RGB")


def _read(path: Path) -> Image.Image:
    from PIL import Image as images

    try:
        with images.open(path) as image:
            image.load()
            return image
    except OSError as error:  # PIL's own errors are OSErrors
        raise InputError(f"image_folder: {path} cannot be read as an image ({error}); mend or remove it") from error


@dataclass(frozen=True)
class ImageSet:
    """Labelled images, opened one by one.

    Attributes:
        class_names: names of the classes.
        labels: class of each image, an index into ``class_names``.
        load: returns image ``i`` (PIL).
    """

    class_names: Sequence[str]
    labels: Sequence[int]
    load: Callable[[int], Image.Image]

    def __post_init__(self) -> None:
        wrong = sorted({label for label in self.labels if not 0 <= label < len(self.class_names)})
        if wrong:
            raise InputError(f"image labels {wrong[:5]} are outside 0..{len(self.class_names) - 1}, the given classes")

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        """Return an image in RGB; transparent parts become white."""
        return _opaque(self.load(index))


class _Images(Model):
    templates: tuple[str, ...] = Field(
        ("a photo of a {}.",), min_length=1, description="Captions of a class; {} is replaced by its name."
    )

    @field_validator("templates")
    @classmethod
    def _has_place(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        for template in templates:
            if template.count("{}") != 1:
                raise ValueError(f"the caption template {template!r} must contain {{}} once, for the name of the class")
        return templates


class FolderImages(_Images):
    """A folder with one sub-folder for each class; the classes are the sub-folders' names, sorted."""

    type: Literal["image_folder"] = "image_folder"
    path: str = Field(description="Folder, or package:PKG/FOLDER inside an installed package.")
    class_names: Mapping[str, str] = Field(
        default_factory=dict, description="Name of a class in captions, where it is not its sub-folder's name."
    )

    def open(self) -> ImageSet:
        """Return the images, sorted by class and path.

        Raises:
            InputError: if the folder is missing or has no images in sub-folders.
        """
        folders = self._folders()
        unknown = sorted(set(self.class_names) - {folder.name for folder in folders})
        if unknown:
            allowed = ", ".join(folder.name for folder in folders)
            raise InputError(
                f"image_folder: `class_names` has {unknown}, which are no sub-folders; there are {allowed}"
            )
        files = [(path, label) for label, folder in enumerate(folders) for path in _image_files(folder)]
        names = [self.class_names.get(folder.name, folder.name.replace("_", " ")) for folder in folders]
        return ImageSet(names, [label for _, label in files], lambda index: _read(files[index][0]))

    def fingerprint(self) -> dict[str, Json]:
        """Return a digest of all names and contents."""
        folders = self._folders()
        files = {f"{folder.name}/{path.relative_to(folder).as_posix()}": file_sha256(path)
                 for folder in folders for path in _image_files(folder)}  # fmt: skip
        return {"images": len(files), "sha256": content_key(files)}

    def _folders(self) -> list[Path]:
        root = locate(self.path)
        if not root.is_dir():
            raise InputError(f"image_folder: {root} is not a folder; give one that holds a sub-folder for each class")
        folders = [path for path in sorted(root.iterdir()) if path.is_dir() and next(_image_files(path), None)]
        if not folders:
            allowed = ", ".join(sorted(SUFFIXES))
            raise InputError(f"image_folder: {root} has no sub-folder with images ({allowed}); make one for each class")
        return folders


class HubImages(_Images):
    """A dataset of the Hugging Face hub, read by the ``datasets`` library."""

    type: Literal["hub_dataset"] = "hub_dataset"
    dataset: str = Field(description="Name on the hub, or what else datasets.load_dataset takes first.")
    config: str | None = Field(None, description="Name of the dataset's configuration.")
    split: str = Field("train", description="Split, slices such as train[:1000] too.")
    revision: str | None = Field(None, description="Commit or tag: pin it, contents on a hub may change.")
    image: str = Field("image", description="Column of the images.")
    label: str = Field("label", description="Column of the labels (integers).")
    class_names: tuple[str, ...] | None = Field(None, description="Names of the classes, if the dataset has none.")

    def open(self) -> ImageSet:
        """Return the images in the dataset's order.

        Raises:
            MissingPackageError: if ``datasets`` is not installed.
            InputError: if the dataset, a column or the class names are missing.
        """
        rows = self._load()
        for column in (self.image, self.label):
            check_column(column, rows.column_names, f"hub_dataset {self.dataset!r}")
        names = self.class_names or getattr(rows.features[self.label], "names", None)
        if names is None:
            raise InputError(
                f"hub_dataset {self.dataset!r}: column {self.label!r} has no class names; give `class_names`"
            )
        labels = [int(label) for label in rows[self.label]]
        return ImageSet(tuple(names), labels, lambda index: rows[index][self.image])

    def fingerprint(self) -> dict[str, Json]:
        """Return nothing: the configuration names the revision."""
        return {}

    def _load(self) -> Any:
        try:
            import datasets
        except ImportError as error:
            raise MissingPackageError(
                "images of type hub_dataset need the package `datasets`; pip install 'saebench-core[hub]'"
            ) from error
        try:
            return datasets.load_dataset(self.dataset, self.config, split=self.split, revision=self.revision)
        except (OSError, ValueError) as error:
            raise InputError(f"hub_dataset {self.dataset!r} cannot be loaded: {error}") from error


class DigitImages(_Images):
    """scikit-learn's handwritten digits: 1,797 grey images of 8x8 pixels, ten classes; no download."""

    type: Literal["digits"] = "digits"
    templates: tuple[str, ...] = Field(
        (
            "a photo of the handwritten digit {}.",
            "the digit {}, written by hand.",
            "a small grey picture of the number {}.",
            "someone wrote the number {}.",
        ),
        min_length=1,
        description="Captions of a class; {} is replaced by its name.",
    )

    def open(self) -> ImageSet:
        """Return the images in scikit-learn's order, white on black."""
        from PIL import Image
        from sklearn.datasets import load_digits

        bunch = load_digits()
        pixels = (bunch.images * (255 / 16)).round().astype("uint8")  # the source has 17 grey levels
        labels = [int(label) for label in bunch.target]
        return ImageSet(DIGITS, labels, lambda index: Image.fromarray(pixels[index]))

    def fingerprint(self) -> dict[str, Json]:
        """Return a digest of scikit-learn's data file, found without importing scikit-learn."""
        return dict[str, Json](fingerprint("package:sklearn/datasets/data/digits.csv.gz"))


class CallableImages(_Images):
    """A Python function that returns an `ImageSet`."""

    type: Literal["callable"] = "callable"
    function: str = Field(description="module:function", pattern=FUNCTION_PATTERN)
    arguments: Mapping[str, Json] = Field(default_factory=dict, description="Keyword arguments of the function.")

    def open(self) -> ImageSet:
        """Call the function.

        Raises:
            InputError: if it cannot be imported, or does not return an `ImageSet`.
        """
        images = call_function(self.function, self.arguments)
        if not isinstance(images, ImageSet):
            raise InputError(f"images: {self.function!r} returned {type(images).__name__}; it must return an ImageSet")
        return images

    def fingerprint(self) -> dict[str, Json]:
        """Return a digest of the module's source."""
        return {"source_sha256": function_digest(self.function)}


ImageSource = Annotated[FolderImages | HubImages | DigitImages | CallableImages, Field(discriminator="type")]
"""Where labelled images come from; ``type`` says which."""
