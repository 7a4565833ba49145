"""All that is known of a plugin without running it, as a document for people and programs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

from pydantic import BaseModel

from saebench_core.catalog.fields import fields_of, nested_models, tag_of
from saebench_core.catalog.plugin import Plugin
from saebench_core.errors import in_words
from saebench_core.interfaces.constraint import Constraint, ConstraintSpec
from saebench_core.interfaces.metric import Metric, MetricSpec, ScoreInfo

__all__ = ["describe", "scores_of", "smallest_entry"]


def describe(plugin: Plugin) -> dict[str, Any]:
    """Return where a plugin comes from, its keys, and what its kind says beside them; plain JSON.

    What the plugin itself must be asked (scores, what is randomised) is null, with the reason, where it cannot answer
    without keys that have no default.
    """
    spec = plugin.spec
    return {
        "kind": plugin.kind,
        "name": plugin.name,
        "summary": spec.summary,
        "source": spec.source,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "origin": plugin.origin,
        "depends": list(spec.depends),
        "notices": list(plugin.notices),
        "config": _fields(spec.config),
        "nested": [
            {"key": key, "type": tag_of(model), "summary": _first_line(model), "config": _fields(model)}
            for key, model in nested_models(spec.config)
        ],
        **_of_kind(plugin),
    }


def _fields(model: type[BaseModel]) -> list[dict[str, Any]]:
    return [field._asdict() for field in fields_of(model)]


def _first_line(model: type[BaseModel]) -> str:
    return ((model.__doc__ or "").strip().splitlines() or [""])[0]


def _of_kind(plugin: Plugin) -> dict[str, Any]:
    """Return what a constraint randomises and needs, or the scores of a metric."""
    found: dict[str, Any] = {"constraint": None, "metric": None, "unknown": None}
    try:
        if isinstance(plugin.spec, ConstraintSpec):
            found["constraint"] = _constraint(_built(plugin))
        elif isinstance(plugin.spec, MetricSpec):
            found["metric"] = _metric(_built(plugin))
    except Exception as error:  # a plugin may raise anything
        found["unknown"] = in_words(error)
    return found


def _constraint(constraint: Constraint) -> dict[str, Any]:
    return {
        "randomises": sorted(constraint.randomises),
        "needs": constraint.needs,
        "trains": constraint.trains,
    }


def _metric(metric: Metric) -> dict[str, Any]:
    scores = {
        name: {
            "direction": info.direction,
            "unit": info.unit,
            "low": _bound(info.low),
            "high": _bound(info.high),
            "reads": info.reads,
            "formula": info.formula,
            "source": info.source,
            "headline": info.headline,
        }
        for name, info in metric.scores().items()
    }
    return {"version": metric.version, "scores": scores}


def _bound(value: float | None) -> float | None:
    """Return a bound as JSON holds it: an infinite one is none."""
    return value if value is not None and math.isfinite(value) else None


def scores_of(plugin: Plugin) -> Mapping[str, ScoreInfo]:
    """Return the scores of a metric as its default configuration declares them."""
    metric: Metric = _built(plugin)
    return metric.scores()


def _built(plugin: Plugin) -> Any:
    config = plugin.spec.config
    return cast(Any, plugin.spec).build(config.model_validate(smallest_entry(config)))


def smallest_entry(config: type[BaseModel]) -> dict[str, Any]:
    """Return the shortest entry of a plugin whose keys have defaults: its type, and a size where it needs one."""
    size = {"d_sae": 1} if "d_sae" in config.model_fields else {}
    return {"type": tag_of(config), **size}
