"""Language models behind OpenAI's protocol, whoever serves them: limits, retries and what they cost."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from saebench_core import InputError, Json, MissingPackageError, Model

__all__ = ["Ask", "LlmClient", "LlmServer", "Message", "Reply"]

Message = Mapping[str, str]
"""``role`` and ``content``."""


class LlmServer(Model):
    """Where a language model is asked, and how much."""

    base_url: str | None = Field(None, description="Address of a server that speaks OpenAI's protocol; null: OpenAI's.")
    model: str = Field("gpt-4o-mini", description="Name of the model there.")
    api_key_env: str = Field(
        "OPENAI_API_KEY", description="Environment variable with the key; where a base_url is given it may be unset."
    )
    timeout: PositiveFloat = Field(60.0, description="Seconds that an answer may take.")
    max_retries: int = Field(5, ge=0, description="Further tries after errors 429 and 5xx and broken connections.")
    concurrency: PositiveInt = Field(4, description="Requests under way at a time.")
    requests_per_minute: PositiveFloat | None = Field(None, description="Limit of requests in a minute.")
    max_requests: PositiveInt | None = Field(None, description="Stop before more requests than this, in one run.")
    budget_usd: PositiveFloat | None = Field(None, description="Stop when the answers of one run have cost this.")
    price_input: NonNegativeFloat = Field(0.0, description="Dollars for a million tokens read; prices change.")
    price_output: NonNegativeFloat = Field(0.0, description="Dollars for a million tokens written.")
    replay_only: bool = Field(False, description="Ask nothing: only answers that are stored are used.")
    temperature: NonNegativeFloat = Field(0.0, description="Sampling temperature.")

    def identity(self) -> dict[str, Json]:
        """Return what answers depend on: neither limits nor keys."""
        return {"base_url": self.base_url, "model": self.model, "temperature": self.temperature}


class Reply(NamedTuple):
    """An answer.

    Attributes:
        text: its words.
        refused: the model, or a filter before it, would not answer.
        retries: tries that failed before.
        tokens: tokens read and written.
    """

    text: str
    refused: bool
    retries: int
    tokens: tuple[int, int]


Ask = Callable[[Sequence[Message], int], Reply]
"""Sends messages, with the tokens that the answer may have."""


@dataclass
class _Spent:
    requests: int = 0
    usd: float = 0.0
    next_at: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)


class LlmClient:
    """Asks, from any thread.

    Raises:
        MissingPackageError: if ``openai`` is not installed.
        InputError: if OpenAI itself is meant and the key is not set.
    """

    def __init__(self, server: LlmServer) -> None:
        try:
            import openai
        except ImportError as error:
            raise MissingPackageError(
                "a language model as judge needs the package `openai`; pip install 'saebench-core[autointerp]'"
            ) from error
        key = os.environ.get(server.api_key_env)
        if not key and server.base_url is None:
            raise InputError(f"the environment variable {server.api_key_env} is not set; it holds the key of the judge")
        self.server = server
        self._errors = openai.OpenAIError
        self._client = openai.OpenAI(
            api_key=key or "none", base_url=server.base_url, timeout=server.timeout, max_retries=server.max_retries
        )
        self._spent = _Spent()

    def ask(self, messages: Sequence[Message], max_tokens: int) -> Reply:
        """Return the answer to messages.

        Raises:
            InputError: if a limit is reached, or the server does not answer after all tries.
        """
        self._wait()
        listed: Any = [dict(message) for message in messages]
        try:
            raw: Any = self._client.chat.completions.with_raw_response.create(
                model=self.server.model,
                messages=listed,
                max_tokens=max_tokens,
                temperature=self.server.temperature,
            )
            answer = raw.parse()
        except self._errors as error:
            raise InputError(
                f"the judge {self.server.model!r} did not answer ({type(error).__name__}: {error}); what it said "
                "before is kept: run again to go on"
            ) from error
        choice = answer.choices[0]
        usage = answer.usage
        tokens = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
        self._count(tokens)
        refused = bool(getattr(choice.message, "refusal", None)) or choice.finish_reason == "content_filter"
        return Reply(choice.message.content or "", refused, int(raw.retries_taken), tokens)

    def _wait(self) -> None:
        """Take a place in the queue of requests, or stop at a limit."""
        server, spent = self.server, self._spent
        with spent.lock:
            if server.replay_only:
                raise InputError("replay_only: an answer that is asked for is not stored; ask once without it")
            if server.max_requests is not None and spent.requests >= server.max_requests:
                raise InputError(_stopped(f"{server.max_requests} requests (max_requests)"))
            if server.budget_usd is not None and spent.usd >= server.budget_usd:
                raise InputError(_stopped(f"{server.budget_usd:g} dollars (budget_usd)"))
            spent.requests += 1
            now = time.monotonic()
            pause = max(0.0, spent.next_at - now)
            if server.requests_per_minute is not None:
                spent.next_at = max(now, spent.next_at) + 60 / server.requests_per_minute
        if pause:
            time.sleep(pause)

    def _count(self, tokens: tuple[int, int]) -> None:
        prices = (self.server.price_input, self.server.price_output)
        with self._spent.lock:
            self._spent.usd += sum(count * price for count, price in zip(tokens, prices, strict=True)) / 1e6


def _stopped(limit: str) -> str:
    return f"the judge was stopped at {limit}; its answers are kept: raise the limit, or run again, to go on"
