"""Language models behind OpenAI's protocol, whoever serves them: limits, retries and what they cost."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import urlsplit

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from saebench_core import InputError, Json, MissingPackageError, Model

__all__ = ["Ask", "LlmClient", "LlmServer", "Message", "Reply"]

OPENAI: Final = "https://api.openai.com/v1"
_NAME: Final = re.compile(r"[A-Z_][A-Z0-9_]*")
_THOUGHT: Final = re.compile(r"\A\s*<think>.*?(</think>|\Z)", re.DOTALL)

Message = Mapping[str, str]
"""``role`` and ``content``."""


class LlmServer(Model):
    """Where a language model is asked, and how much."""

    base_url: str = Field(OPENAI, description="Address of a server that speaks OpenAI's protocol.")
    model: str = Field("gpt-4o-mini", description="Name of the model there.")
    api_key_env: str | None = Field(
        None,
        description="Environment variable with the key, in capitals; by default OPENAI_API_KEY for OpenAI, none for "
        "others.",
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
    temperature: NonNegativeFloat | None = Field(
        0.0, description="Sampling temperature; null: none is sent, for models that take none."
    )
    room_to_think: NonNegativeInt = Field(
        0, description="Tokens that an answer may have beside its own, for models that think before they answer."
    )
    limit_name: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="What the server calls the limit of an answer's tokens."
    )

    @field_validator("base_url")
    @classmethod
    def _is_address(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be an address that begins with http:// or https://")
        if parts.username or parts.password or parts.query:
            raise PydanticCustomError(
                "secret", "must have no user, password or query, for it is stored: name a key by `api_key_env`"
            )
        return value.rstrip("/")

    @field_validator("api_key_env")
    @classmethod
    def _is_name(cls, value: str | None) -> str | None:
        if value is not None and not _NAME.fullmatch(value):
            raise PydanticCustomError(
                "secret", "must be the name of an environment variable, in capitals, and not the key itself"
            )
        return value

    @model_validator(mode="after")
    def _priced(self) -> LlmServer:
        if self.budget_usd is not None and not (self.price_input or self.price_output):
            raise ValueError("a budget_usd needs price_input and price_output, dollars for a million tokens")
        return self

    @property
    def key_name(self) -> str | None:
        """Environment variable with the key; None where none is sent."""
        return self.api_key_env or ("OPENAI_API_KEY" if self.base_url == OPENAI else None)

    def identity(self) -> dict[str, Json]:
        """Return what answers depend on: neither limits of a run nor keys."""
        found: dict[str, Json] = {"base_url": self.base_url, "model": self.model, "temperature": self.temperature}
        return {**found, "room_to_think": self.room_to_think}  # an answer that was cut may be whole with more

    def request(self, messages: Sequence[Message], max_tokens: int) -> dict[str, Any]:
        """Return what is sent for an answer of so many tokens."""
        sent: dict[str, Any] = {"model": self.model, "messages": [dict(message) for message in messages]}
        sent[self.limit_name] = max_tokens + self.room_to_think
        return sent if self.temperature is None else {**sent, "temperature": self.temperature}


class Reply(NamedTuple):
    """An answer.

    Attributes:
        text: its words.
        refused: the model, or a filter before it, would not answer.
        retries: tries that failed before.
        tokens: tokens read and written.
        cut: it ended for want of room.
    """

    text: str
    refused: bool
    retries: int
    tokens: tuple[int, int]
    cut: bool = False


Ask = Callable[[Sequence[Message], int], Reply]
"""Sends messages, with the tokens that the answer may have."""


@dataclass
class _Spent:
    requests: int = 0
    usd: float = 0.0
    next_at: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)


class LlmClient:
    """Asks, from any thread; connects when it is first asked."""

    def __init__(self, server: LlmServer) -> None:
        self.server = server
        self._spent = _Spent()
        self._connected: Any = None

    def check(self) -> None:
        """See that it could ask, without asking: package and key are there, or answers are replayed.

        Raises:
            MissingPackageError: if ``openai`` is not installed.
            InputError: if the key is not set.
        """
        if not self.server.replay_only:
            self._client()

    def ask(self, messages: Sequence[Message], max_tokens: int) -> Reply:
        """Return the answer to messages.

        Raises:
            MissingPackageError: if ``openai`` is not installed.
            InputError: if the key is not set, a limit is reached, or the server does not answer after all tries.
        """
        self._wait()
        client = self._client()
        import openai

        try:
            raw: Any = client.chat.completions.with_raw_response.create(**self.server.request(messages, max_tokens))
            reply = _read(raw)
        except openai.OpenAIError as error:
            raise InputError(self._failed(f"{type(error).__name__}: {error}")) from error
        except (AttributeError, IndexError, TypeError, ValueError) as error:
            raise InputError(self._failed("what came is no chat completion; is the base_url right?")) from error
        self._count(reply)
        return reply

    def _failed(self, why: str) -> str:
        """Say that there is no answer; a key that a server echoes is not repeated."""
        key = os.environ.get(self.server.key_name or "")
        told = why.replace(key, "***") if key else why
        return (
            f"the judge {self.server.model!r} at {self.server.base_url} did not answer ({told}); "
            "what it said before is kept: run again to go on"
        )

    def _client(self) -> Any:
        with self._spent.lock:
            if self._connected is None:
                self._connected = self._connect()
            return self._connected

    def _connect(self) -> Any:
        try:
            import openai
        except ImportError as error:
            raise MissingPackageError(
                "a language model as judge needs the package `openai`; pip install 'saebench-core[autointerp]'"
            ) from error
        name = self.server.key_name
        key = os.environ.get(name) if name else "none"
        if not key:
            raise InputError(f"the environment variable {name} is not set; it holds the key of the judge")
        server = self.server
        return openai.OpenAI(
            api_key=key, base_url=server.base_url, timeout=server.timeout, max_retries=server.max_retries
        )

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

    def _count(self, reply: Reply) -> None:
        """Count what an answer took, further tries as well."""
        server, spent = self.server, self._spent
        if server.budget_usd is not None and reply.tokens == (0, 0):
            raise InputError(
                f"the server at {server.base_url} does not say how many tokens an answer took, so that budget_usd "
                "cannot be kept; give max_requests in its place"
            )
        prices = (server.price_input, server.price_output)
        with spent.lock:
            spent.usd += sum(count * price for count, price in zip(reply.tokens, prices, strict=True)) / 1e6
            spent.requests += reply.retries
            if server.requests_per_minute is not None:
                spent.next_at += reply.retries * 60 / server.requests_per_minute


def _read(raw: Any) -> Reply:
    """Return the answer in a response; what a model thought before it is left out.

    Raises:
        AttributeError, IndexError, TypeError, ValueError: if it is no chat completion.
    """
    answer = raw.parse()
    choice, usage = answer.choices[0], answer.usage
    text = choice.message.content
    if text is not None and not isinstance(text, str):
        raise TypeError("the content is no text")
    tokens = (int(usage.prompt_tokens or 0), int(usage.completion_tokens or 0)) if usage else (0, 0)
    refused = bool(getattr(choice.message, "refusal", None)) or choice.finish_reason == "content_filter"
    spoken = _THOUGHT.sub("", text or "")
    return Reply(spoken, refused, int(raw.retries_taken), tokens, choice.finish_reason == "length")


def _stopped(limit: str) -> str:
    return f"the judge was stopped at {limit}; its answers are kept: raise the limit, or run again, to go on"
