"""Where inputs come from: files, texts, labelled tables, images."""

from saebench_core.sources.files import SourceFile, find_files, fingerprint, locate, open_binary, open_text
from saebench_core.sources.images import ImageSet, ImageSource
from saebench_core.sources.packing import PackedSequences, Packing, pack_documents, split_of_text
from saebench_core.sources.tables import LabelledTexts, TableSource
from saebench_core.sources.texts import TextSource

__all__ = [
    "ImageSet",
    "ImageSource",
    "LabelledTexts",
    "PackedSequences",
    "Packing",
    "SourceFile",
    "TableSource",
    "TextSource",
    "find_files",
    "fingerprint",
    "locate",
    "open_binary",
    "open_text",
    "pack_documents",
    "split_of_text",
]
