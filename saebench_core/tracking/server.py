"""How `saebench ui` starts MLflow's pages: on this machine only, with two processes instead of ten."""

from __future__ import annotations

import ipaddress
import sys
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import quote

from saebench_core.errors import InputError
from saebench_core.results import Sweep
from saebench_core.tracking.probe import SERVERS
from saebench_core.tracking.tracker import Tracker, default_uri

__all__ = ["UiCommand", "ui_command"]

_ENVIRONMENT: Final = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # seven idle consumers of 240 MB each otherwise
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


class UiCommand(NamedTuple):
    """What to run, with what beside the environment, and what to open; no argv where a server runs already."""

    argv: tuple[str, ...]
    env: dict[str, str]
    deep_link: str


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _link(base: str, experiment: str | None, sweep: Sweep | None) -> str:
    if experiment is None or sweep is None:
        return base
    wanted = f"tags.`saebench.kind` = 'cell' AND tags.`saebench.sweep.{sweep.sweep_id}` = '1'"
    # In any order but that of creation the page shows cells one by one instead of folded below their sweep.
    order = "orderByKey=params.%60constraint%60&orderByAsc=true&workflowType=machine_learning"
    return f"{base}/#/experiments/{experiment}/runs?searchFilter={quote(wanted, safe='')}&{order}"


def ui_command(
    uri: str | None,
    workdir: Path,
    host: str = "127.0.0.1",
    port: int = 5000,
    *,
    sweep: Sweep | None = None,
    allow_remote: bool = False,
) -> UiCommand:
    """Return how to show a tracker's pages.

    Args:
        uri: tracking URI, or None for the workdir's own database.
        workdir: the workdir.
        host: address to listen on.
        port: port to listen on.
        sweep: whose cells the link shows.
        allow_remote: whether other machines may reach the pages, which ask for no password.

    Raises:
        InputError: if the host is reachable from elsewhere and that was not allowed.
    """
    if not (allow_remote or _is_loopback(host)):
        raise InputError(
            f"host {host!r} would show the pages to other machines, without a password; "
            "allowed is a loopback address such as 127.0.0.1; allow other machines explicitly if you mean it"
        )
    experiment = Tracker(uri, workdir).experiment_id(sweep.name) if sweep is not None else None
    if uri is not None and uri.startswith(SERVERS):
        return UiCommand((), {}, _link(uri.rstrip("/"), experiment, sweep))
    store = uri or default_uri(workdir)
    options = ["--backend-store-uri", store, "--host", host, "--port", str(port), "--workers", "1"]
    shown = f"[{host}]" if ":" in host else host
    argv = (sys.executable, "-m", "mlflow", "server", *options)
    return UiCommand(argv, dict(_ENVIRONMENT), _link(f"http://{shown}:{port}", experiment, sweep))
