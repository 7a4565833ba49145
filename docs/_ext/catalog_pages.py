"""Pages that are made from the built-in plugins when the documentation is built, so that they cannot go stale.

The functions return Markdown and know nothing of Sphinx; `CatalogTable` puts it into a page::

    ```{catalog} scores
    ```
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, cast

from docutils import nodes
from pydantic import BaseModel
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from saebench_core import (
    ArchitectureConfig,
    BackboneConfig,
    ConstraintConfig,
    ConstraintSpec,
    MetricConfig,
    ScoreInfo,
)
from saebench_core.catalog import Catalog, Plugin, PluginChoice, make_catalog
from saebench_core.catalog.describing import scores_of, smallest_entry
from saebench_core.catalog.fields import fields_of, nested_models, shown, tag_of, type_text
from saebench_core.conformance import Check, checks_of
from saebench_core.interfaces.entry import Kind
from saebench_core.interfaces.loaded import LoadedSpec
from saebench_core.presets import PREFIX, preset_names, preset_summary
from saebench_core.registry.model import ExcludeRule, RegistryModel, RuntimeSettings
from saebench_core.report.words import FLAGS
from saebench_core.tasks.collect import valid_null
from saebench_core.training.settings import PRESETS, TrainingSettings

__all__ = [
    "PAGES",
    "CatalogTable",
    "config_page",
    "flags_page",
    "plugins_page",
    "render",
    "scores_of",
    "scores_page",
    "setup",
]

KINDS: Final[tuple[Kind, ...]] = ("backbone", "architecture", "constraint", "metric")
_BASES: Final[Mapping[Kind, type[BaseModel]]] = {
    "backbone": BackboneConfig,
    "architecture": ArchitectureConfig,
    "constraint": ConstraintConfig,
    "metric": MetricConfig,
}
_EMPTY: Final = "-"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; bars inside cells are escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)


def code(value: object) -> str:
    """Return a value as code."""
    return f"`{value}`"


def fields_table(model: type[BaseModel], base: type[BaseModel] | None = None) -> str:
    """Return a table of a configuration's keys: type, default, meaning; those that its base has alike are left out."""
    rows = [
        [
            code(field.key),
            type_text(model.model_fields[field.key].annotation, model.model_fields[field.key].metadata, quote="`"),
            "required" if field.required else code(shown(field.default)),
            field.description or _EMPTY,
        ]
        for field in fields_of(model, base)
    ]
    return table(["key", "type", "default", "meaning"], rows) if rows else "No keys of its own."


def _summary(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").strip().splitlines()[0].replace("`", "``").replace("````", "``")


def config_page(kind: Kind, catalog: Catalog) -> str:
    """Return, for every plugin of a kind, its summary, source and configuration keys with those of nested mappings."""
    parts = [f"Every {kind} has, beside `type`, the keys", fields_table(_BASES[kind])]
    for plugin in catalog.of_kind(kind):
        model = plugin.spec.config
        source = f"Source: {plugin.spec.source or _EMPTY}. Module: `{module_of(plugin)}`."
        parts += [f"### `{plugin.name}`", f"{_sentence(plugin.spec.summary)} {source}"]
        parts.append(fields_table(model, _BASES[kind]))
        for key, inner in nested_models(model):
            title = f"`{key}: {{type: {tag_of(inner)}}}`" if "type" in inner.model_fields else f"`{key}`"
            parts += [f"{title}: {_summary(inner)}", fields_table(inner)]
    return "\n\n".join(parts)


def module_of(plugin: Plugin) -> str:
    """Return the name of the module that a plugin is defined in."""
    return plugin.spec.config.__module__


def files_page(kind: Kind, catalog: Catalog) -> str:
    """Return the plugins of a kind with their modules."""
    return "\n".join(f"- `{plugin.name}`: `{module_of(plugin)}`" for plugin in catalog.of_kind(kind))


def _sentence(text: str) -> str:
    return f"{text.removesuffix('.')}."


def plugins_page(catalog: Catalog) -> str:
    """Return a table of all plugins by kind."""
    rows = [[kind, code(plugin.name), plugin.spec.summary, plugin.spec.source] for kind, plugin in _all(catalog)]
    return table(["kind", "name", "what it is", "source"], rows)


def _all(catalog: Catalog) -> Iterator[tuple[Kind, Plugin]]:
    for kind in KINDS:
        yield from ((kind, plugin) for plugin in catalog.of_kind(kind))


def _range(info: ScoreInfo) -> str:
    low = "(-inf" if info.low is None else f"[{info.low:g}"
    return f"{low}, inf)" if info.high is None else f"{low}, {info.high:g}]"


def scores_page(catalog: Catalog) -> str:
    """Return, for every metric, a table of its scores; a star marks those that tables show by default."""
    parts = []
    for plugin in catalog.of_kind("metric"):
        scores = scores_of(plugin)
        rows = [
            [
                code(f"{plugin.name}/{name}") + " \\*" * info.headline,
                _range(info),
                info.direction,
                info.unit,
                info.reads,
            ]
            for name, info in scores.items()
        ]
        formulas = [f"- `{name}`: {code(info.formula)}. Source: {info.source}." for name, info in scores.items()]
        parts += [f"### `{plugin.name}` scores", table(["score", "range", "better", "unit", "reads"], rows)]
        parts.append("\n".join(formulas))
    return "\n\n".join(parts)


def nulls_page(catalog: Catalog) -> str:
    """Return what each constraint holds random, and for which scores it is a valid null."""
    rows = []
    for plugin in catalog.of_kind("constraint"):
        spec = cast(ConstraintSpec, plugin.spec)
        constraint = spec.build(spec.config.model_validate(smallest_entry(spec.config)))
        answers = ["yes" if valid_null(constraint, "iso", reads) else "no" for reads in ("encoder", "decoder", "both")]
        rows.append([code(plugin.name), ", ".join(sorted(constraint.randomises)) or "nothing", *answers])
    return table(["constraint", "holds random", "null for encoder", "null for decoder", "null for both"], rows)


def flags_page() -> str:
    """Return what each flag says."""
    return table(["flag", "what it says"], [[code(name), text] for name, text in FLAGS.items()])


def presets_page() -> str:
    """Return the named training settings."""
    keys = list(dict.fromkeys(key for preset in PRESETS.values() for key in preset))
    rows = [[code(name), *(shown(preset.get(key, "the default")) for key in keys)] for name, preset in PRESETS.items()]
    return table(["preset", *map(code, keys)], rows)


def shipped_page() -> str:
    """Return the registries that come with the package."""
    rows = [[code(f"{PREFIX}{name}"), preset_summary(name)] for name in preset_names()]
    return table(["registry", "what it is"], rows)


def checks_page(catalog: Catalog) -> str:
    """Return, for every kind, a table of the conformance kit's checks; those of all kinds come first."""
    listed = {f"{kind}s".capitalize(): checks_of(kind) for kind in KINDS}
    loaded = next(plugin for plugin in catalog.of_kind("architecture") if isinstance(plugin.spec, LoadedSpec))
    listed["Architectures that are loaded"] = checks_of(loaded)
    shared = [check for check in checks_of("backbone") if all(check in checks for checks in listed.values())]
    parts = ["### All kinds", _checks(shared)]
    for title, checks in listed.items():
        parts += [f"### {title}", _checks([check for check in checks if check not in shared])]
    return "\n\n".join(parts)


def _checks(checks: Sequence[Check[Any]]) -> str:
    rows = [[code(check.name), check.summary, f"{check.remedy}."] for check in checks]
    return table(["check", "what holds", "where it does not"], rows)


PAGES: Final[Mapping[str, Callable[[Catalog], str]]] = {
    "plugins": plugins_page,
    "scores": scores_page,
    "nulls": nulls_page,
    "flags": lambda _: flags_page(),
    "checks": checks_page,
    "registry": lambda _: fields_table(RegistryModel),
    "training": lambda _: fields_table(TrainingSettings),
    "presets": lambda _: presets_page(),
    "shipped": lambda _: shipped_page(),
    "runtime": lambda _: fields_table(RuntimeSettings),
    "exclude": lambda _: fields_table(ExcludeRule),
    **{f"{kind}s": partial(config_page, kind) for kind in KINDS},
    **{f"files_{kind}": partial(files_page, kind) for kind in KINDS},
}
"""What the directive's argument may be."""


def render(page: str, catalog: Catalog) -> str:
    """Return a page's Markdown."""
    return PAGES[page](catalog)


class CatalogTable(SphinxDirective):
    """Puts one of `PAGES` in place of itself."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the parsed page."""
        page = self.arguments[0]
        if page not in PAGES:
            raise self.error(f"no catalog page {page!r}; there are: {', '.join(PAGES)}")
        return self.parse_text_to_nodes(
            render(page, make_catalog(PluginChoice(frozenset()))), allow_section_headings=True
        )


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the directive."""
    app.add_directive("catalog", CatalogTable)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
