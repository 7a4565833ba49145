"""What holds for every test: shapes and types checked at run time, one thread, no network, no global randomness."""

import os
import signal

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["DO_NOT_TRACK"] = "true"
os.environ["HF_HUB_OFFLINE"] = "1"

import jaxtyping
import pytest
import torch

from tests.helpers.typecheck import TENSOR_MODULES

# before the packages are imported: their annotations are enforced in tests, and cost users nothing
jaxtyping.install_import_hook(TENSOR_MODULES, "tests.helpers.typecheck.checked")
torch.set_num_threads(1)


def pytest_configure(config):
    config.addinivalue_line("markers", "uses_global_rng(reason): the test may move torch's global generator")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts its background jobs
        signal.signal(signal.SIGINT, signal.default_int_handler)  # children are to hear interruptions


def pytest_collection_modifyitems(items):
    """Begin with the longest file, or it would be what all others have to wait for."""
    items.sort(key=lambda item: "third_party" not in item.path.parts)


@pytest.fixture(autouse=True)
def global_generator_stays_put(request):
    """Fail a test during which somebody drew from torch's global generator."""
    marker = request.node.get_closest_marker("uses_global_rng")
    if marker is not None and not marker.kwargs.get("reason"):
        pytest.fail("uses_global_rng needs a reason")
    before = torch.get_rng_state()
    yield
    if marker is None and not torch.equal(before, torch.get_rng_state()):
        pytest.fail("torch's global generator moved; give every draw a generator of its own")
