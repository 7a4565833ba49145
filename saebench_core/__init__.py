"""Train and score every sparse autoencoder beside its random twins.

The names below are the public interface. Each is loaded on first use, so that importing the package is free.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from saebench_core._version import __version__

if TYPE_CHECKING:
    from saebench_core.activations import (
        MANIFEST as MANIFEST,
        Manifest as Manifest,
        StoredReader as StoredReader,
        damaged_shards as damaged_shards,
    )
    from saebench_core.api import (
        CellOutcome as CellOutcome,
        Results as Results,
        Scores as Scores,
        run as run,
        score as score,
        train_twins as train_twins,
    )
    from saebench_core.errors import (
        InputError as InputError,
        MissingPackageError as MissingPackageError,
        PluginError as PluginError,
        SaebenchError as SaebenchError,
        nearest as nearest,
    )
    from saebench_core.formats import (
        Checkpoint as Checkpoint,
        CheckpointFormat as CheckpointFormat,
        checkpoint_files as checkpoint_files,
        checkpoint_plugins as checkpoint_plugins,
        checkpoint_sizes as checkpoint_sizes,
        read_checkpoint as read_checkpoint,
    )
    from saebench_core.geometry import drawn_order as drawn_order, project_on_band as project_on_band
    from saebench_core.hookspecs import hookimpl as hookimpl
    from saebench_core.interfaces.architecture import (
        Architecture as Architecture,
        ArchitectureConfig as ArchitectureConfig,
        ArchitectureSpec as ArchitectureSpec,
        Recipe as Recipe,
        Shape as Shape,
    )
    from saebench_core.interfaces.backbone import (
        ActivationBatch as ActivationBatch,
        Backbone as Backbone,
        BackboneConfig as BackboneConfig,
        BackboneDescription as BackboneDescription,
        BackboneSpec as BackboneSpec,
        EditableModel as EditableModel,
        FeatureTree as FeatureTree,
        GroundTruth as GroundTruth,
        LanguageModel as LanguageModel,
        Patch as Patch,
        Precomputed as Precomputed,
        ReadableModel as ReadableModel,
        TokenBatch as TokenBatch,
        VisionModel as VisionModel,
    )
    from saebench_core.interfaces.chart import (
        Chart as Chart,
        ChartPanel as ChartPanel,
        Observed as Observed,
        Series as Series,
    )
    from saebench_core.interfaces.constraint import (
        BaseDraw as BaseDraw,
        Constraint as Constraint,
        ConstraintConfig as ConstraintConfig,
        ConstraintSpec as ConstraintSpec,
        Init as Init,
        Randomised as Randomised,
        Start as Start,
        Statistics as Statistics,
        Truth as Truth,
        draw_directions as draw_directions,
    )
    from saebench_core.interfaces.context import (
        ActivationReader as ActivationReader,
        Context as Context,
        MetricContext as MetricContext,
        Progress as Progress,
        Split as Split,
    )
    from saebench_core.interfaces.entry import Json as Json, Model as Model
    from saebench_core.interfaces.excerpt import (
        Card as Card,
        Column as Column,
        Excerpt as Excerpt,
        Gallery as Gallery,
    )
    from saebench_core.interfaces.loaded import (
        LoadedArchitecture as LoadedArchitecture,
        LoadedConfig as LoadedConfig,
        LoadedShape as LoadedShape,
        LoadedSpec as LoadedSpec,
    )
    from saebench_core.interfaces.metric import (
        Metric as Metric,
        MetricConfig as MetricConfig,
        MetricSpec as MetricSpec,
        NotApplicable as NotApplicable,
        Prepared as Prepared,
        Score as Score,
        Scored as Scored,
        ScoreInfo as ScoreInfo,
        Subject as Subject,
        Work as Work,
    )
    from saebench_core.kernels import (
        Codes as Codes,
        PreActivations as PreActivations,
        Selected as Selected,
        Selection as Selection,
        select_mask as select_mask,
    )
    from saebench_core.objectives import (
        L1 as L1,
        AuxK as AuxK,
        GateReconstruction as GateReconstruction,
        Objective as Objective,
        Orthogonality as Orthogonality,
        PowerPenalty as PowerPenalty,
        PreActivationLoss as PreActivationLoss,
        PrefixReconstruction as PrefixReconstruction,
        Reconstruction as Reconstruction,
        Step as Step,
        StepL0 as StepL0,
        TanhPenalty as TanhPenalty,
        TargetL0 as TargetL0,
        Term as Term,
        WeightedTerm as WeightedTerm,
    )
    from saebench_core.pursuit import pursue as pursue
    from saebench_core.randomness import (
        derive_seed as derive_seed,
        named_generator as named_generator,
        tensor_sha256 as tensor_sha256,
    )
    from saebench_core.registry import Registry as Registry
    from saebench_core.results import CellResult as CellResult, MetricValue as MetricValue
    from saebench_core.rules import (
        BatchTopK as BatchTopK,
        Export as Export,
        Gated as Gated,
        JumpReLU as JumpReLU,
        ReLU as ReLU,
        Role as Role,
        Rule as Rule,
        TensorInfo as TensorInfo,
        TopK as TopK,
    )
    from saebench_core.sae import SparseAutoencoder as SparseAutoencoder
    from saebench_core.sources import (
        ImageSet as ImageSet,
        ImageSource as ImageSource,
        LabelledTexts as LabelledTexts,
        Packing as Packing,
        TableSource as TableSource,
        TextSource as TextSource,
        find_files as find_files,
        locate as locate,
        pack_documents as pack_documents,
        split_of_text as split_of_text,
    )
    from saebench_core.store import file_sha256 as file_sha256

_HOME: dict[str, str] = {
    name: module
    for module, names in {
        "activations": ("MANIFEST", "Manifest", "StoredReader", "damaged_shards"),
        "api": ("CellOutcome", "Results", "Scores", "run", "score", "train_twins"),
        "errors": ("InputError", "MissingPackageError", "PluginError", "SaebenchError", "nearest"),
        "formats": (
            "Checkpoint", "CheckpointFormat", "checkpoint_files", "checkpoint_plugins", "checkpoint_sizes",
            "read_checkpoint",
        ),
        "geometry": ("drawn_order", "project_on_band"),
        "hookspecs": ("hookimpl",),
        "interfaces.architecture": ("Architecture", "ArchitectureConfig", "ArchitectureSpec", "Recipe", "Shape"),
        "interfaces.backbone": (
            "ActivationBatch", "Backbone", "BackboneConfig", "BackboneDescription", "BackboneSpec", "EditableModel",
            "FeatureTree", "GroundTruth", "LanguageModel", "Patch", "Precomputed", "ReadableModel", "TokenBatch",
            "VisionModel",
        ),
        "interfaces.chart": ("Chart", "ChartPanel", "Observed", "Series"),
        "interfaces.excerpt": ("Card", "Column", "Excerpt", "Gallery"),
        "interfaces.constraint": (
            "BaseDraw", "Constraint", "ConstraintConfig", "ConstraintSpec", "Init", "Randomised", "Start", "Statistics",
            "Truth", "draw_directions",
        ),
        "interfaces.context": ("ActivationReader", "Context", "MetricContext", "Progress", "Split"),
        "interfaces.entry": ("Json", "Model"),
        "interfaces.loaded": ("LoadedArchitecture", "LoadedConfig", "LoadedShape", "LoadedSpec"),
        "interfaces.metric": (
            "Metric", "MetricConfig", "MetricSpec", "NotApplicable", "Prepared", "Score", "ScoreInfo", "Scored",
            "Subject", "Work",
        ),
        "kernels": ("Codes", "PreActivations", "Selected", "Selection", "select_mask"),
        "objectives": (
            "AuxK", "GateReconstruction", "L1", "Objective", "Orthogonality", "PowerPenalty", "PreActivationLoss",
            "PrefixReconstruction", "Reconstruction", "Step", "StepL0", "TanhPenalty", "TargetL0", "Term",
            "WeightedTerm",
        ),
        "pursuit": ("pursue",),
        "randomness": ("derive_seed", "named_generator", "tensor_sha256"),
        "registry": ("Registry",),
        "results": ("CellResult", "MetricValue"),
        "rules": ("BatchTopK", "Export", "Gated", "JumpReLU", "ReLU", "Role", "Rule", "TensorInfo", "TopK"),
        "sae": ("SparseAutoencoder",),
        "sources": (
            "ImageSet", "ImageSource", "LabelledTexts", "Packing", "TableSource", "TextSource", "find_files", "locate",
            "pack_documents", "split_of_text",
        ),
        "store": ("file_sha256",),
    }.items()
    for name in names
}  # fmt: skip

__all__ = ["__version__", *_HOME]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
