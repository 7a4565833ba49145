"""The backbone of activations computed before: its layout, its checks, folders and fsspec places alike."""

from __future__ import annotations

import hashlib
import json
import uuid

import fsspec
import pytest
import torch
from saebench_plugins.backbones.activations import StoredActivations, StoredActivationsConfig

from saebench_core import InputError, MissingPackageError
from saebench_core.activations import Manifest, StoredReader, collect, damaged_shards, storage
from saebench_core.errors import StoreError
from saebench_core.interfaces.backbone import Precomputed
from tests.helpers.contexts import FakeContext
from tests.helpers.registries import TINY, call, changed
from tests.helpers.training import MemoryBackbone, normal, quiet

CPU = torch.device("cpu")
SPLITS = {"train": 50, "calibration": 11, "evaluation": 12}
ROWS = {split: normal(rows, 4, seed=seed) for seed, (split, rows) in enumerate(SPLITS.items())}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "SHARD_ROWS", 20)
    for split, rows in ROWS.items():
        (tmp_path / "rows" / split).mkdir(parents=True)
        collect(MemoryBackbone(rows), "values", split, len(rows), tmp_path / "rows" / split, quiet)
    return tmp_path / "rows"


def backbone(path, **keys):
    return StoredActivations(StoredActivationsConfig.model_validate({"path": str(path)} | keys))


def prepared(path, root, **keys):
    made = backbone(path, **keys)
    made.prepare(FakeContext(root))
    return made


def rows_of(made, split, start=0, count=1000):
    return torch.cat([batch.inputs for batch in made.stream("activations", split, start, count)])


def uploaded(place):
    """Put the folder into fsspec's memory and return its URL."""
    files, name = fsspec.filesystem("memory"), f"/bucket-{uuid.uuid4().hex}"
    for path in place.rglob("*.*"):
        files.pipe(f"{name}/{path.relative_to(place).as_posix()}", path.read_bytes())
    return f"memory:/{name}", files


def rewritten(folder, **changes):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_folder_is_described_without_reading_rows(place):
    for shard in place.rglob("*.safetensors"):
        shard.unlink()
    description = backbone(place, site="layers.3").describe()
    assert description.sites == {"layers.3": 4}
    assert (description.regenerates, description.disk_bytes) == (True, 0)
    assert description.facts == {"train_rows": 50, "calibration_rows": 11, "evaluation_rows": 12}


def test_rows_are_those_that_were_stored(place, tmp_path):
    made = prepared(place, tmp_path)
    assert isinstance(made, Precomputed)
    for split, rows in ROWS.items():
        assert made.rows_available("activations", split) == len(rows)
        assert torch.equal(rows_of(made, split), rows)
        assert torch.equal(rows_of(made, split, 5, 3), rows[5:8])
        assert made.folder("activations", split) == place / split
    assert all(batch.targets is batch.inputs for batch in made.stream("activations", "train", 0, 9))


def test_shards_behind_a_url_are_fetched_once(place, tmp_path):
    url, files = uploaded(place)
    made = prepared(url, tmp_path / "store")
    assert torch.equal(rows_of(made, "train"), ROWS["train"])
    assert made.describe().disk_bytes == sum(path.stat().st_size for path in place.rglob("*.safetensors"))
    assert made.fingerprint() == backbone(place).fingerprint(), "the place does not matter, the content does"
    again, context = backbone(url), FakeContext(tmp_path / "store")
    for path in files.find(url, withdirs=False):
        if path.endswith(".safetensors"):
            files.rm(path)
    again.prepare(context)
    assert not context.built
    assert torch.equal(rows_of(again, "evaluation"), ROWS["evaluation"])


def test_the_fingerprint_follows_the_content(place):
    before = backbone(place).fingerprint()
    assert set(before) == set(SPLITS)
    shard = json.loads((place / "train" / "manifest.json").read_text())["shards"]
    shard[1]["sha256"] = "0" * 64
    rewritten(place / "train", shards=shard)
    after = backbone(place).fingerprint()
    assert after["train"] != before["train"]
    assert after["evaluation"] == before["evaluation"]


def flip(path, position=-1):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("remote", [False, True], ids=["folder", "url"])
def test_a_tampered_shard_is_found(place, tmp_path, remote):
    flip(place / "calibration" / "shard-00000.safetensors")
    where = uploaded(place)[0] if remote else place
    with pytest.raises(InputError, match=r"not what the manifest states: shard-00000.safetensors"):
        prepared(where, tmp_path / "store")


def test_a_flipped_bit_anywhere_is_found(place):
    folder = place / "train"
    assert StoredReader(folder, CPU).verify() == []
    for path in sorted(folder.glob("*.safetensors")):
        content = path.read_bytes()
        for position in range(0, len(content), 37):
            flip(path, position)
            assert damaged_shards(folder, Manifest.read(folder)) == [path.name]
            path.write_bytes(content)


def test_a_shard_of_another_size_is_found_at_opening(place):
    path = place / "train" / "shard-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(StoreError, match=r"not of the size.*: shard-00001"):
        StoredReader(place / "train", CPU)
    path.unlink()
    with pytest.raises(StoreError, match=r"missing.*: shard-00001"):
        StoredReader(place / "train", CPU)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": 51}, "do not have 51 rows together"),
        ({"rows": 0}, "rows"),
        ({"format": "other"}, "format"),
        ({"shards": [{"file": "../x", "rows": 50, "dtype": "float32", "bytes": 9, "sha256": "0" * 64}]}, "file"),
        ({"shards": [{"file": "x.pt", "rows": 50, "dtype": "object", "bytes": 9, "sha256": "0" * 64}]}, "dtype"),
        ({"more": 1}, "more"),
        ({"shards": [{"file": "x", "rows": 25, "dtype": "float32", "bytes": 9, "sha256": "0" * 64}] * 2}, "same name"),
    ],
    ids=str,
)
def test_a_manifest_that_is_not_sound_is_refused(place, changes, message):
    rewritten(place / "train", **changes)
    with pytest.raises(InputError, match=f"is no manifest of activations.*{message}"):
        backbone(place).describe()


def test_what_is_not_there_is_refused(place, tmp_path):
    with pytest.raises(InputError, match="no file"):
        backbone(tmp_path / "nowhere").describe()
    with pytest.raises(InputError, match=r"nothing-here/train/manifest.json cannot be read"):
        backbone("memory://nothing-here").describe()
    with pytest.raises(MissingPackageError, match="nosuch"):
        backbone("nosuch://bucket").describe()
    (place / "evaluation" / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"evaluation/manifest.json: No such file.*activations export"):
        backbone(place).describe()
    with pytest.raises(RuntimeError, match="not prepared"):
        backbone(place).folder("activations", "train")


def test_splits_of_different_width_are_refused(place, tmp_path):
    (tmp_path / "wide").mkdir()
    collect(MemoryBackbone(normal(9, 5)), "values", "train", 9, tmp_path / "wide", quiet)
    for path in (tmp_path / "wide").iterdir():
        path.replace(place / "evaluation" / path.name)
    with pytest.raises(InputError, match="differ in d_in"):
        backbone(place).describe()


def test_a_shape_that_the_manifest_does_not_state_is_refused(place):
    rewritten(place / "train", d_in=3)
    with pytest.raises(StoreError, match=r"expected the shape \(20, 3\), found \(20, 4\)"):
        StoredReader(place / "train", CPU)


def test_a_stated_hash_is_checked_and_stands_for_the_path(place, tmp_path):
    texts = [(place / split / "manifest.json").read_bytes() for split in SPLITS]
    sha256 = hashlib.sha256(b"".join(texts)).hexdigest()
    stated = backbone(place, sha256=sha256)
    assert stated.describe() == backbone(place).describe()
    place.rename(tmp_path / "elsewhere")
    moved = backbone(tmp_path / "elsewhere", sha256=sha256)
    assert moved.config.identity() == stated.config.identity()
    assert moved.config.identity() == {"type": "activations", "site": "activations", "seed": 0, "sha256": sha256}
    assert "sha256" not in backbone(place).config.identity(), "without it, ids are what they were"
    assert backbone(place).config.identity() != backbone(tmp_path / "elsewhere").config.identity()
    with pytest.raises(InputError, match=f"have the sha256 {sha256}, not the one"):
        backbone(tmp_path / "elsewhere", sha256="0" * 64).describe()


FROM_FOLDER = changed(
    (
        "{name: toy, type: synthetic, d_in: 8, n_features: 16, probability: {type: constant, p: 0.1}}",
        "{name: toy, type: activations, path: out}",
    ),
    ("  - {type: feature_recovery}\n", ""),
    ("[0, 1]", "[0]"),
)


def test_what_is_exported_can_be_trained_on(tmp_path):
    (tmp_path / "registry.yaml").write_text(TINY)
    outcome = call("activations", "export", "toy", "out", cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    assert "640 rows of train, 64 rows of calibration, 64 rows of evaluation" in outcome.out
    assert not list(tmp_path.glob(".saebench/store/activations/*")), "nothing is stored twice"
    (tmp_path / "stored.yaml").write_text(FROM_FOLDER)
    outcome = call("run", "stored.yaml", cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    assert not list(tmp_path.glob(".saebench/store/activations/*")), "rows are used where they are"
    copied = call("activations", "export", "toy", "again", "--registry", "stored.yaml", cwd=tmp_path)
    assert copied.code == 0, copied.err
    for path in sorted((tmp_path / "out").rglob("*.*")):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(tmp_path / "out")).read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["toi", "new"], "no backbone 'toi'; there are: toy; did you mean 'toy'?"),
        (["toy", "new", "--site", "x"], "give a --site of toy: activations, not 'x'"),
        (["toy", "full"], "is there already"),
    ],
)
def test_an_export_that_cannot_be(tmp_path, words, message):
    (tmp_path / "registry.yaml").write_text(TINY)
    (tmp_path / "full" / "evaluation").mkdir(parents=True)
    outcome = call("activations", "export", *words, cwd=tmp_path)
    assert outcome.code == 2
    assert message in outcome.err
    assert not (tmp_path / "full" / "train").exists()
