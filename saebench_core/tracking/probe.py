"""Asks a store whether it is there before mlflow does, which would go on asking for minutes."""

from __future__ import annotations

import socket
import sqlite3
import ssl
import urllib.error
import urllib.request
from contextlib import closing
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

__all__ = ["SERVERS", "probe", "sqlite_path"]

SERVERS: Final = ("http://", "https://")
_SECONDS: Final = 3.0
_PORTS: Final = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


def sqlite_path(uri: str) -> Path | None:
    """Return the file behind a sqlite URI; None for other stores and for a database in memory."""
    path = uri.removeprefix("sqlite:///").partition("?")[0]
    return Path(path).absolute() if uri.startswith("sqlite:///") and path not in ("", ":memory:") else None


def probe(uri: str, seconds: float = _SECONDS) -> None:
    """Check that a tracking store can be reached; other schemes than http, sqlite and databases are not asked.

    Raises:
        ConnectionError: if it does not answer in time, or its file cannot be written.
    """
    scheme = urlsplit(uri).scheme.partition("+")[0]
    try:
        if uri.startswith(SERVERS):
            _probe_http(uri, seconds)
        elif (path := sqlite_path(uri)) is not None:
            _probe_sqlite(path, seconds)
        elif scheme in _PORTS and (host := urlsplit(uri).hostname):
            socket.create_connection((host, urlsplit(uri).port or _PORTS[scheme]), seconds).close()
    except (OSError, ValueError, sqlite3.Error) as error:
        # The URI may hold a password, so it is not repeated here.
        raise ConnectionError(
            f"the {scheme} tracking store cannot be used: {getattr(error, 'reason', error)}"
        ) from error


def _probe_http(uri: str, seconds: float) -> None:
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=seconds):  # noqa: S310 - http(s) only
            return
    except urllib.error.HTTPError as answer:
        answer.close()  # it is alive, whatever it says
    except urllib.error.URLError as error:
        if not isinstance(error.reason, ssl.SSLError):  # mlflow has its own settings for certificates
            raise


def _probe_sqlite(path: Path, seconds: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path, timeout=seconds)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.rollback()
