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
    )
    from saebench_core.activations import (
        Manifest as Manifest,
    )
    from saebench_core.activations import (
        StoredReader as StoredReader,
    )
    from saebench_core.activations import (
        damaged_shards as damaged_shards,
    )
    from saebench_core.errors import (
        InputError as InputError,
    )
    from saebench_core.errors import (
        MissingPackageError as MissingPackageError,
    )
    from saebench_core.errors import (
        PluginError as PluginError,
    )
    from saebench_core.errors import (
        SaebenchError as SaebenchError,
    )
    from saebench_core.errors import (
        nearest as nearest,
    )
    from saebench_core.formats import (
        Checkpoint as Checkpoint,
    )
    from saebench_core.formats import (
        CheckpointFormat as CheckpointFormat,
    )
    from saebench_core.formats import (
        checkpoint_files as checkpoint_files,
    )
    from saebench_core.formats import (
        checkpoint_sizes as checkpoint_sizes,
    )
    from saebench_core.formats import (
        read_checkpoint as read_checkpoint,
    )
    from saebench_core.hookspecs import hookimpl as hookimpl
    from saebench_core.interfaces.architecture import (
        Architecture as Architecture,
    )
    from saebench_core.interfaces.architecture import (
        ArchitectureConfig as ArchitectureConfig,
    )
    from saebench_core.interfaces.architecture import (
        ArchitectureSpec as ArchitectureSpec,
    )
    from saebench_core.interfaces.architecture import (
        Recipe as Recipe,
    )
    from saebench_core.interfaces.architecture import (
        Shape as Shape,
    )
    from saebench_core.interfaces.backbone import (
        ActivationBatch as ActivationBatch,
    )
    from saebench_core.interfaces.backbone import (
        Backbone as Backbone,
    )
    from saebench_core.interfaces.backbone import (
        BackboneConfig as BackboneConfig,
    )
    from saebench_core.interfaces.backbone import (
        BackboneDescription as BackboneDescription,
    )
    from saebench_core.interfaces.backbone import (
        BackboneSpec as BackboneSpec,
    )
    from saebench_core.interfaces.backbone import (
        GroundTruth as GroundTruth,
    )
    from saebench_core.interfaces.backbone import (
        LanguageModel as LanguageModel,
    )
    from saebench_core.interfaces.backbone import (
        Patch as Patch,
    )
    from saebench_core.interfaces.backbone import (
        Precomputed as Precomputed,
    )
    from saebench_core.interfaces.backbone import (
        TokenBatch as TokenBatch,
    )
    from saebench_core.interfaces.backbone import (
        VisionModel as VisionModel,
    )
    from saebench_core.interfaces.constraint import (
        BaseDraw as BaseDraw,
    )
    from saebench_core.interfaces.constraint import (
        Constraint as Constraint,
    )
    from saebench_core.interfaces.constraint import (
        ConstraintConfig as ConstraintConfig,
    )
    from saebench_core.interfaces.constraint import (
        ConstraintSpec as ConstraintSpec,
    )
    from saebench_core.interfaces.constraint import (
        Init as Init,
    )
    from saebench_core.interfaces.constraint import (
        Randomised as Randomised,
    )
    from saebench_core.interfaces.constraint import (
        Start as Start,
    )
    from saebench_core.interfaces.constraint import (
        Statistics as Statistics,
    )
    from saebench_core.interfaces.constraint import (
        draw_directions as draw_directions,
    )
    from saebench_core.interfaces.context import (
        ActivationReader as ActivationReader,
    )
    from saebench_core.interfaces.context import (
        Context as Context,
    )
    from saebench_core.interfaces.context import (
        MetricContext as MetricContext,
    )
    from saebench_core.interfaces.context import (
        Progress as Progress,
    )
    from saebench_core.interfaces.context import (
        Split as Split,
    )
    from saebench_core.interfaces.entry import Json as Json
    from saebench_core.interfaces.entry import Model as Model
    from saebench_core.interfaces.loaded import (
        LoadedArchitecture as LoadedArchitecture,
    )
    from saebench_core.interfaces.loaded import (
        LoadedConfig as LoadedConfig,
    )
    from saebench_core.interfaces.loaded import (
        LoadedShape as LoadedShape,
    )
    from saebench_core.interfaces.loaded import (
        LoadedSpec as LoadedSpec,
    )
    from saebench_core.interfaces.metric import (
        Metric as Metric,
    )
    from saebench_core.interfaces.metric import (
        MetricConfig as MetricConfig,
    )
    from saebench_core.interfaces.metric import (
        MetricSpec as MetricSpec,
    )
    from saebench_core.interfaces.metric import (
        NotApplicable as NotApplicable,
    )
    from saebench_core.interfaces.metric import (
        Prepared as Prepared,
    )
    from saebench_core.interfaces.metric import (
        Score as Score,
    )
    from saebench_core.interfaces.metric import (
        Scored as Scored,
    )
    from saebench_core.interfaces.metric import (
        ScoreInfo as ScoreInfo,
    )
    from saebench_core.interfaces.metric import (
        Subject as Subject,
    )
    from saebench_core.kernels import Codes as Codes
    from saebench_core.kernels import PreActivations as PreActivations
    from saebench_core.kernels import Selected as Selected
    from saebench_core.kernels import Selection as Selection
    from saebench_core.kernels import select_mask as select_mask
    from saebench_core.objectives import (
        L1 as L1,
    )
    from saebench_core.objectives import (
        AuxK as AuxK,
    )
    from saebench_core.objectives import (
        GateReconstruction as GateReconstruction,
    )
    from saebench_core.objectives import (
        Objective as Objective,
    )
    from saebench_core.objectives import (
        Orthogonality as Orthogonality,
    )
    from saebench_core.objectives import (
        PowerPenalty as PowerPenalty,
    )
    from saebench_core.objectives import (
        PreActivationLoss as PreActivationLoss,
    )
    from saebench_core.objectives import (
        PrefixReconstruction as PrefixReconstruction,
    )
    from saebench_core.objectives import (
        Reconstruction as Reconstruction,
    )
    from saebench_core.objectives import (
        Step as Step,
    )
    from saebench_core.objectives import (
        StepL0 as StepL0,
    )
    from saebench_core.objectives import (
        TanhPenalty as TanhPenalty,
    )
    from saebench_core.objectives import (
        TargetL0 as TargetL0,
    )
    from saebench_core.objectives import (
        Term as Term,
    )
    from saebench_core.objectives import (
        WeightedTerm as WeightedTerm,
    )
    from saebench_core.randomness import derive_seed as derive_seed
    from saebench_core.randomness import named_generator as named_generator
    from saebench_core.rules import (
        BatchTopK as BatchTopK,
    )
    from saebench_core.rules import (
        Export as Export,
    )
    from saebench_core.rules import (
        Gated as Gated,
    )
    from saebench_core.rules import (
        JumpReLU as JumpReLU,
    )
    from saebench_core.rules import (
        ReLU as ReLU,
    )
    from saebench_core.rules import (
        Role as Role,
    )
    from saebench_core.rules import (
        Rule as Rule,
    )
    from saebench_core.rules import (
        TensorInfo as TensorInfo,
    )
    from saebench_core.rules import (
        TopK as TopK,
    )
    from saebench_core.sae import SparseAutoencoder as SparseAutoencoder
    from saebench_core.sources import (
        ImageSet as ImageSet,
    )
    from saebench_core.sources import (
        ImageSource as ImageSource,
    )
    from saebench_core.sources import (
        LabelledTexts as LabelledTexts,
    )
    from saebench_core.sources import (
        Packing as Packing,
    )
    from saebench_core.sources import (
        TableSource as TableSource,
    )
    from saebench_core.sources import (
        TextSource as TextSource,
    )
    from saebench_core.sources import (
        find_files as find_files,
    )
    from saebench_core.sources import (
        locate as locate,
    )
    from saebench_core.sources import (
        pack_documents as pack_documents,
    )
    from saebench_core.sources import (
        split_of_text as split_of_text,
    )
    from saebench_core.store import file_sha256 as file_sha256

_HOME: dict[str, str] = {
    name: module
    for module, names in {
        "activations": ("MANIFEST", "Manifest", "StoredReader", "damaged_shards"),
        "errors": ("InputError", "MissingPackageError", "PluginError", "SaebenchError", "nearest"),
        "formats": (
            "Checkpoint", "CheckpointFormat", "checkpoint_files", "checkpoint_sizes", "read_checkpoint",
        ),
        "hookspecs": ("hookimpl",),
        "interfaces.architecture": ("Architecture", "ArchitectureConfig", "ArchitectureSpec", "Recipe", "Shape"),
        "interfaces.backbone": (
            "ActivationBatch", "Backbone", "BackboneConfig", "BackboneDescription", "BackboneSpec", "GroundTruth",
            "LanguageModel", "Patch", "Precomputed", "TokenBatch", "VisionModel",
        ),
        "interfaces.constraint": (
            "BaseDraw", "Constraint", "ConstraintConfig", "ConstraintSpec", "Init", "Randomised", "Start", "Statistics",
            "draw_directions",
        ),
        "interfaces.context": ("ActivationReader", "Context", "MetricContext", "Progress", "Split"),
        "interfaces.entry": ("Json", "Model"),
        "interfaces.loaded": ("LoadedArchitecture", "LoadedConfig", "LoadedShape", "LoadedSpec"),
        "interfaces.metric": (
            "Metric", "MetricConfig", "MetricSpec", "NotApplicable", "Prepared", "Score", "ScoreInfo", "Scored",
            "Subject",
        ),
        "kernels": ("Codes", "PreActivations", "Selected", "Selection", "select_mask"),
        "objectives": (
            "AuxK", "GateReconstruction", "L1", "Objective", "Orthogonality", "PowerPenalty", "PreActivationLoss",
            "PrefixReconstruction", "Reconstruction", "Step", "StepL0", "TanhPenalty", "TargetL0", "Term",
            "WeightedTerm",
        ),
        "randomness": ("derive_seed", "named_generator"),
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
