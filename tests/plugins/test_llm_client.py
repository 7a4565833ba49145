"""A client of OpenAI's protocol: what it sends, what it takes for an answer, and where it stops."""

from __future__ import annotations

import pytest
from pydantic import ValidationError
from saebench_plugins.metrics import _llm_client
from saebench_plugins.metrics._llm_client import LlmClient, LlmServer

from saebench_core import InputError
from tests.helpers.contexts import FakeContext
from tests.helpers.interp import Knows, TokenWorld, llm, metric_of, one_to_one, run, server

ASKED = [{"role": "user", "content": "what?"}]


class Says(Knows):
    """Says the same whatever it is asked, its answer changed as a test wants it."""

    def __init__(self, change=None, text="yes", failures=()):
        super().__init__(failures)
        self.text = text
        self.changes = change

    def reply(self, messages):
        return self.text

    def change(self, answer):
        if self.changes is not None:
            self.changes(answer)
        return answer


def client(url, **options):
    return LlmClient(LlmServer(base_url=url, model="m", **options))


def ask(says, **options):
    with server(says) as url:
        return client(url, **options).ask(ASKED, 7)


def test_what_is_sent():
    says = Says()
    ask(says)
    ask(says, temperature=0.5, room_to_think=100, limit_name="max_completion_tokens")
    ask(says, temperature=None)
    sent = [request for request, _ in says.asked]
    assert sent[0] == {"model": "m", "messages": ASKED, "max_tokens": 7, "temperature": 0.0}
    assert sent[1] == {"model": "m", "messages": ASKED, "max_completion_tokens": 107, "temperature": 0.5}
    assert sent[2] == {"model": "m", "messages": ASKED, "max_tokens": 7}


def test_the_client_is_told_timeout_and_tries():
    connected = client("http://127.0.0.1:9/v1/", timeout=3, max_retries=2)._client()
    assert (connected.timeout, connected.max_retries) == (3, 2)
    assert str(connected.base_url) == "http://127.0.0.1:9/v1/"


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("yes", "yes"),
        ("<think>no, or\nrather</think> yes", " yes"),
        (" <think>without an end", ""),
        ("yes <think>", "yes <think>"),
    ],
)
def test_what_is_thought_before_an_answer_is_none(text, spoken):
    assert ask(Says(text=text)).text == spoken


def test_what_an_answer_says_of_itself():
    def refuse(answer):
        answer["choices"][0]["message"] |= {"content": None, "refusal": "no"}

    def cut(answer):
        answer["choices"][0]["finish_reason"] = "length"

    def uncounted(answer):
        answer["usage"] = {"prompt_tokens": None, "completion_tokens": 3, "total_tokens": None}

    plain = ask(Says())
    assert plain == ("yes", False, 0, (100, 10), False)
    assert ask(Says(refuse)) == ("", True, 0, (100, 10), False)
    assert ask(Says(cut)).cut
    assert ask(Says(uncounted)).tokens == (0, 3)
    assert ask(Says(lambda answer: answer.pop("usage"))).tokens == (0, 0)
    assert ask(Says(failures=[500, 429])).retries == 2


def no_message(answer):
    answer["choices"] = [{}]


def no_choice(answer):
    answer["choices"] = []


def in_parts(answer):
    answer["choices"][0]["message"]["content"] = [{"type": "text", "text": "yes"}]


@pytest.mark.parametrize("change", [no_message, no_choice, in_parts])
def test_what_is_no_answer_is_told_and_not_kept(change, tmp_path):
    context = FakeContext(tmp_path / "store", TokenWorld(), "s")
    says = Says(change)
    with server(says) as url:
        metric = metric_of(llm(url, concurrency=1), latents=1, shuffled=False)
        with pytest.raises(InputError, match="no chat completion"):
            run(metric, one_to_one(), tmp_path, context.given, context)
    assert not [*(tmp_path / "store").rglob("reply.json")]


def test_a_budget_counts_what_is_read_and_written():
    with server(Says()) as url:
        reads = client(url, budget_usd=0.00025, price_input=1.0)  # 100 tokens an answer
        writes = client(url, budget_usd=0.00025, price_output=10.0)  # 10
        for one in (reads, writes):
            for _ in range(3):
                one.ask(ASKED, 7)
            with pytest.raises(InputError, match=r"stopped at 0\.00025 dollars"):
                one.ask(ASKED, 7)


def test_a_budget_needs_a_server_that_counts():
    with pytest.raises(InputError, match=r"does not say how many tokens.*give max_requests"):
        ask(Says(lambda answer: answer.pop("usage")), budget_usd=1, price_input=1.0)


def test_further_tries_are_requests():
    with server(Says(failures=[500, 500])) as url:
        few = client(url, max_requests=3)
        few.ask(ASKED, 7)
        with pytest.raises(InputError, match="stopped at 3 requests"):
            few.ask(ASKED, 7)


def test_requests_wait_for_their_turn(monkeypatch):
    pauses = []
    monkeypatch.setattr(_llm_client.time, "monotonic", lambda: 50.0)
    monkeypatch.setattr(_llm_client.time, "sleep", pauses.append)
    says = Says()
    limited = LlmClient(LlmServer(base_url="http://127.0.0.1:9/v1", requests_per_minute=30))
    for _ in range(3):
        limited._wait()
    free = LlmClient(LlmServer(base_url="http://127.0.0.1:9/v1"))
    free._wait()
    free._wait()
    assert pauses == [2.0, 4.0]
    assert not says.asked


def test_refused_questions_are_not_asked_again(tmp_path):
    says = Says(lambda answer: answer["choices"][0]["message"].update(content=None, refusal="no"))
    with server(says) as url:
        metric = metric_of(llm(url, concurrency=1), latents=1, shuffled=False)
        result, _ = run(metric, one_to_one(), tmp_path)
    assert len(says.asked) == 3  # a description, and twenty windows ten at a time
    assert result.scores["refused"].value == 20 and result.scores["repaired"].value == 0


def test_lists_that_were_cut_are_not_read(tmp_path):
    """A whole list may stand in an answer that was to go on."""

    def cut(answer):
        answer["choices"][0]["finish_reason"] = "length"

    with server(Says(cut, text="[1, 1, 1, 1, 1, 1, 1, 1, 1, 1]")) as url:
        metric = metric_of(llm(url, concurrency=1), latents=1, shuffled=False)
        result, _ = run(metric, one_to_one(), tmp_path)
    assert result.scores["unparsed"].value == 20
    assert result.scores["cut"].value == 1 + 2 * 2


@pytest.mark.parametrize(
    "options", [{"model": "other"}, {"temperature": 0.5}, {"room_to_think": 50}, {"tested": 10}, {"width": 10}]
)
def test_what_was_answered_is_used_for_the_same_question_alone(options, tmp_path):
    context = FakeContext(tmp_path / "store", TokenWorld(), "s")
    knows = Knows()
    with server(knows) as url:

        def scored(**changed):
            protocol = {name: changed.pop(name) for name in ("tested", "width") if name in changed}
            run(
                metric_of({**llm(url), **changed}, latents=2, shuffled=False, **protocol),
                one_to_one(),
                tmp_path,
                context.given,
                context,
            )

        scored()
        before = len(knows.asked)
        scored()
        assert len(knows.asked) == before
        scored(**options)
        assert len(knows.asked) > before


def test_another_server_is_another_question(tmp_path):
    context = FakeContext(tmp_path / "store", TokenWorld(), "s")
    asked = []
    for _ in range(2):
        knows = Knows()
        with server(knows) as url:
            run(metric_of(llm(url), latents=2, shuffled=False), one_to_one(), tmp_path, context.given, context)
        asked.append(len(knows.asked))
    assert asked == [6, 6]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"base_url": "foo"}, "begins with http"),
        ({"base_url": "ftp://host/v1"}, "begins with http"),
        ({"base_url": "http:///v1"}, "begins with http"),
        ({"base_url": "http://me:PASSWORD@host/v1"}, "no user, password or query"),
        ({"base_url": "https://host/v1?key=PASSWORD"}, "no user, password or query"),
        ({"api_key_env": "sk-PASSWORD"}, "name of an environment variable"),
        ({"api_key_env": "gsk_password"}, "in capitals"),
    ],
)
def test_addresses_and_names_of_keys(options, words):
    with pytest.raises(ValidationError, match=words):
        LlmServer(**options)


def test_openais_address_needs_its_key_however_it_is_written():
    assert LlmServer().key_name == LlmServer(base_url="https://api.openai.com/v1/").key_name == "OPENAI_API_KEY"
    assert LlmServer(base_url="http://localhost:1/v1").key_name is None
