"""Named collections of labelled tables for sparse probing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import TypeAdapter

from saebench_core import MissingPackageError, TableSource

__all__ = ["Suite", "suite_tables"]

Suite = Literal["paper", "sae_probes", "safety", "languages"]

_WHEEL: Final = "package:sae_probes/data"
_FORTUNES: Final = "/usr/share/games/fortunes"
_FORTUNES_PACKAGES: Final[Mapping[str, str]] = {
    "": "fortunes",
    **{place: f"fortunes-{place}" for place in ("de", "es", "it", "pl")},
}
"""Debian's package for each folder of it."""
_TABLES: TypeAdapter[tuple[TableSource, ...]] = TypeAdapter(tuple[TableSource, ...])


def suite_tables(suite: Suite) -> tuple[TableSource, ...]:
    """Return the tables of a suite.

    Raises:
        MissingPackageError: if the package that lists them is not installed.
    """
    return _TABLES.validate_python(_SUITES[suite]())


def _paper() -> list[dict[str, Any]]:
    """Eight groups, 36 classes: professions, products, sentiment, code, news and languages (section 4.2).

    Source and sizes are those of SAEBench. Classes are told from the others of their group.
    """
    biographies = [
        {0: "accountant", 1: "architect", 2: "attorney", 6: "dentist", 9: "filmmaker"},
        {11: "journalist", 13: "nurse", 14: "painter", 18: "photographer", 19: "physician"},
        {20: "poet", 21: "professor", 22: "psychologist", 25: "surgeon", 26: "teacher"},
    ]
    products = {1: "toys", 2: "cell_phones", 3: "industrial", 5: "musical_instruments", 6: "electronics"}
    reviews = {"type": "hub_dataset", "dataset": "canrager/amazon_reviews_mcauley_1and5", "test_split": "test"}
    return [
        *(_professions(f"bias_in_bios_{number}", labels) for number, labels in enumerate(biographies, 1)),
        {
            **reviews,
            "name": "amazon_reviews",
            "label": "category",
            "labels": products,
            "balance": "rating",
            "per_label": 1000,  # of each rating
        },
        {
            **reviews,
            "name": "amazon_reviews_sentiment",
            "label": "rating",
            "labels": {1.0: "negative", 5.0: "positive"},
            "positive": ["negative", "positive"],
            "per_label": 2000,
        },
        _code(),
        {
            "type": "hub_dataset",
            "name": "ag_news",
            "dataset": "fancyzhx/ag_news",
            "test_split": "test",
            "labels": {0: "world", 1: "sports", 2: "business", 3: "science"},
        },
        _europarl(),
    ]


def _professions(name: str, labels: Mapping[int, str]) -> dict[str, Any]:
    return {
        "type": "hub_dataset",
        "name": name,
        "dataset": "LabHC/bias_in_bios",
        "test_split": "test",
        "text": "hard_text",
        "label": "profession",
        "labels": labels,
        "balance": "gender",
        "per_label": 1000,  # of each gender
    }


def _code() -> dict[str, Any]:
    """Files above 534 characters without their first 150, where licences stand.

    The dataset's own loader is a script, which nothing here runs; its files are read as they are.
    """
    return {
        "type": "hub_dataset",
        "name": "github_code",
        "dataset": "parquet",
        "data_files": ["hf://datasets/codeparrot/github-code/data/*.parquet"],
        "text": "code",
        "label": "language",
        "labels": {name: name for name in ("C", "HTML", "Java", "PHP", "Python")},
        "per_label": 2500,
        "min_characters": 535,
        "skip_characters": 150,
    }


def _europarl() -> dict[str, Any]:
    pairs = {"en": "en-fr", "fr": "fr-it", "de": "de-en", "es": "es-fr", "nl": "nl-pt"}
    return {
        "type": "classes",
        "name": "europarl",
        "per_label": 2500,
        "sources": {
            language: {
                "type": "hub_dataset",
                "dataset": "Helsinki-NLP/europarl",
                "config": pair,
                "text": f"translation.{language}",
            }
            for language, pair in pairs.items()
        },
    }


def _sae_probes() -> list[dict[str, Any]]:
    """The 113 binary sets of the wheel of sae-probes, as its own list names them."""
    listed = _TABLES.validate_python(
        [
            {
                "type": "csv",
                "path": f"{_WHEEL}/probing_datasets_MASTER.csv.zst",
                "text": "Dataset save name",
                "label": "Data type",
                "labels": {"Binary Classification": "binary"},
            }
        ]
    )
    names = [path.rsplit("/", 1)[-1].removesuffix(".csv") for path in listed[0].rows().texts]
    return [_from_wheel(name.partition("_")[2], name) for name in names]


def _from_wheel(name: str, file: str) -> dict[str, Any]:
    return {
        "type": "csv",
        "name": name,
        "path": f"{_WHEEL}/cleaned_data/{file}.csv.zst",
        "text": "prompt",
        "label": "target",
    }


def _safety() -> list[dict[str, Any]]:
    """Sets of sae-probes for what people watch a model for: toxicity, hate, spam, and what is like deception."""
    positive = {"click_bait": "clickbait", "false_answers": "incorrect"}
    files = {
        "toxicity": "95_toxic_is",
        "hate": "106_hate_hate",
        "offensive": "107_hate_offensive",
        "spam": "96_spam_is",
        "fake_news": "100_news_fake",
        "click_bait": "105_click_bait",
        "false_answers": "41_truthqa_tf",
        "machine_written": "94_ai_gen",
    }
    return [{**_from_wheel(name, file), "positive": positive.get(name, "1")} for name, file in files.items()]


def _languages() -> list[dict[str, Any]]:
    """Sayings in five languages, from Debian's packages fortunes, fortunes-de, -es, -it and -pl."""
    files = {
        "english": ["people", "science", "politics", "work", "men-women", "literature"],
        "german": ["de/zitate"],
        "italian": ["it/italia", "it/zuse", "it/leggi", "it/luttazzi"],
        "polish": ["pl/dowcipy", "pl/argante", "pl/pratchett", "pl/chuck-norris"],
        "spanish": ["es/sabiduria.fortunes", "es/sentimientos.fortunes", "es/arte.fortunes", "es/vida.fortunes"],
    }
    missing = [name for names in files.values() for name in names if not Path(_FORTUNES, name).is_file()]
    if missing:
        lacking = sorted({_FORTUNES_PACKAGES[name.rpartition("/")[0]] for name in missing})
        raise MissingPackageError(
            f"the suite languages reads {_FORTUNES}, where {missing[0]} is missing; apt-get install {' '.join(lacking)}"
        )
    return [
        {
            "type": "classes",
            "name": "languages",
            "min_characters": 40,
            "sources": {
                language: {"type": "text_files", "separator": "%", "paths": [f"{_FORTUNES}/{name}" for name in names]}
                for language, names in files.items()
            },
        }
    ]


_SUITES: Final[Mapping[Suite, Callable[[], list[dict[str, Any]]]]] = {
    "paper": _paper,
    "sae_probes": _sae_probes,
    "safety": _safety,
    "languages": _languages,
}
