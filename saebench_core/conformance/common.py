"""Checks of every kind: configuration, what importing loads, the network, global generators, digests."""

from __future__ import annotations

import json

from saebench_core.conformance.checks import NotCheckable, check, demand, demand_equal
from saebench_core.conformance.subjects import PluginSubject, modules_of
from saebench_core.conformance.watching import HEAVY, heavy_imports

SPARSITY_KEYS = {"k", "l0", "top_k", "topk", "sparsity", "target_l0"}


@check("validate in pydantic fields, keep nothing in the model that JSON cannot hold, and give floats as floats")
def check_configuration_round_trip(subject: PluginSubject) -> None:
    """A configuration that went through JSON is the same configuration."""
    config = subject.config
    text = config.model_dump_json()
    again = type(config).model_validate_json(text)
    demand_equal("configuration after JSON", again, config)
    demand_equal("its JSON", again.model_dump_json(), text)


@check("use defaults and descriptions that JSON Schema can express")
def check_configuration_schema(subject: PluginSubject) -> None:
    """The configuration has a JSON Schema, so that editors know its keys."""
    schema = type(subject.config).model_json_schema()
    json.dumps(schema, allow_nan=False)
    demand_equal("properties of the schema", "type" in schema.get("properties", {}), True)


@check("take the sparsity from `shape.l0`, the only source of it; leave the key out")
def check_configuration_leaves_sparsity_to_l0(subject: PluginSubject) -> None:
    """An architecture has no key for its sparsity beside the registry's `l0`."""
    if subject.plugin.kind != "architecture":
        raise NotCheckable("only architectures have a sparsity")
    own = SPARSITY_KEYS & set(type(subject.config).model_fields)
    demand(not own, f"keys {sorted(own)}", "none of " + ", ".join(sorted(SPARSITY_KEYS)))


@check("keep the constructor free of files, weights and work: do that in `prepare`, `load` or `score`")
def check_building_twice(subject: PluginSubject) -> None:
    """Building from a configuration works again and again, and leaves the configuration alone."""
    before = subject.config.model_dump_json()
    first, second = subject.build(), subject.build()
    demand(first is not second, "the same object twice", "a new object each time")
    demand_equal("configuration after building", subject.config.model_dump_json(), before)


@check("import these libraries inside the functions that need them")
def check_import_is_light(subject: PluginSubject) -> None:
    """Importing the module that is loaded, and the configuration's, loads no heavy library."""
    own = [name for name in modules_of(subject.plugin) if name != "__main__"]
    if not own:
        raise NotCheckable("the plugin was defined in the running script, which is no module")
    for name in own:
        found = heavy_imports(subject.modules)[name]
        demand(isinstance(found, list), f"importing {name} in a process of its own: {found}", "an import")
        demand(not found, f"importing {name} loads {', '.join(found)}", "none of " + ", ".join(HEAVY))


@check("read files or installed packages; a hub only where the user's configuration names one")
def check_no_network(subject: PluginSubject) -> None:
    """At work the plugin does not ask the network for anything."""
    asked = subject.watched.addresses
    demand(not asked, f"connections to {', '.join(dict.fromkeys(asked))}", "no connection")


@check("draw from `context.generator(role)` or `named_generator(...)`, and pass that generator to every draw")
def check_no_global_generators(subject: PluginSubject) -> None:
    """At work the plugin does not move the global generators of torch, numpy or Python."""
    moved = subject.watched.generators
    demand(not moved, f"the global generator of {', '.join(moved)} moved", "no draw from a global generator")


@check("return digests of contents as plain JSON, and the same ones as long as the contents are the same")
def check_fingerprint_is_json(subject: PluginSubject) -> None:
    """The fingerprint of what is read beside the configuration is JSON, and twice the same."""
    first, second = subject.build(), subject.build()
    if not hasattr(first, "fingerprint"):
        raise NotCheckable(f"{subject.plugin.kind}s read nothing beside their configuration")
    told = [json.dumps(dict(made.fingerprint()), sort_keys=True, allow_nan=False) for made in (first, second)]
    demand_equal("fingerprint", told[1], told[0])
