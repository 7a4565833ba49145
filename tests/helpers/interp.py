"""A world whose tokens are its latents, autointerp's metric over it, and a server that judges as it is told."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch
from saebench_plugins.metrics._interp_config import AutointerpConfig
from saebench_plugins.metrics._windows import Recorded, record
from saebench_plugins.metrics.autointerp import Autointerp

from saebench_core import Score, SparseAutoencoder, Subject, TokenBatch, TopK
from tests.helpers.contexts import FakeContext
from tests.helpers.plain import Plain

VOCABULARY, LENGTH, SEQUENCES = 24, 40, 60
D_IN = VOCABULARY + 4
WIDTH = 8


class TokenWorld(Plain):
    """Coordinate t is 1 at token t; coordinate 24 is 1 after token 3, 25 at random, the others never."""

    modality = "language"
    d_in = D_IN

    def __init__(self, sequences=SEQUENCES):
        draw = torch.Generator().manual_seed(0)
        self.ids = torch.randint(VOCABULARY, (sequences, LENGTH), generator=draw)
        self.chance = torch.rand(sequences, LENGTH, generator=draw) < 0.05
        self.reads = 0

    def rows_available(self, site, split):
        return self.ids.numel()

    def sequences(self, split, start, count):
        ids = self.ids[start : start + count]
        kept = torch.ones_like(ids, dtype=torch.bool)
        kept[:, 0] = False
        self._range = slice(start, start + count)
        return TokenBatch(ids, torch.ones_like(kept), kept)

    def read(self, tokens, site):
        self.reads += 1
        rows = torch.nn.functional.one_hot(tokens.ids, D_IN).float()
        rows[:, 1:, 24] = (tokens.ids[:, :-1] == 3).float()
        rows[..., 25] = self.chance[self._range][: len(rows)].float()
        return rows[tokens.kept]

    def pieces(self, ids):
        return [f" t{token}" for token in ids.tolist()]

    def tokenise(self, texts, max_tokens, keep="start"):
        raise NotImplementedError

    logits = words = tokenise


class StrongAndWeak(TokenWorld):
    """The same tokens, with activations that differ in size."""

    def read(self, tokens, site):
        strengths = 1 + torch.rand(SEQUENCES, LENGTH, generator=torch.Generator().manual_seed(1))
        return super().read(tokens, site) * strengths[self._range][: len(tokens.ids)][tokens.kept][:, None]


def one_to_one(d_in=D_IN):
    return SparseAutoencoder.start(torch.eye(d_in), torch.eye(d_in), torch.zeros(d_in), TopK(3), "none")


def metric_of(judge=None, **options):
    shuffled = {"shuffled": options.pop("shuffled")} if "shuffled" in options else {}
    protocol = {"type": "paper", **options}
    if protocol["type"] == "saebench":
        protocol = {"around": 3, **protocol}
    else:
        protocol = {"width": WIDTH, "shown": 6, "tested": 20, "fewest": 4, **protocol}
    judges = {"judge": judge} if judge else {}
    return Autointerp(AutointerpConfig(tokens=10_000, protocol=protocol, **shuffled, **judges))


def run(metric, sae, tmp_path, model=None, context=None):
    model = model or TokenWorld()
    context = context or FakeContext(tmp_path / "store", model, "s")
    prepared = metric.prepare(context)
    return metric.score(Subject(sae, lambda: sae.w_dec), prepared, context), prepared


def recorded_of(model, tmp_path, tokens=10_000):
    return Recorded.of(record(FakeContext(tmp_path, model, "s"), model, "evaluation", tokens, None))


class Knows:
    """Answers as a language model that sees through tokens: it names the marked ones, and finds them again."""

    def __init__(self, failures=(), wrong=()):
        self.failures, self.wrong = list(failures), list(wrong)
        self.asked = []
        self.refusal = "no"
        self.lock = threading.Lock()

    def change(self, answer):
        """Return a whole answer in place of the one that would be sent."""
        return answer

    def reply(self, messages):
        system, text = messages[0]["content"], messages[1]["content"]
        if "You are shown" in system:
            marked = [part.split(">>")[0].strip() for part in text.split("<<")[1:]]
            return "the word " + max(set(marked), key=marked.count)
        word = text.split("the word ")[1].split("\n")[0]
        lines = text.split("Excerpts:\n")[1].splitlines()
        if "<<" in "".join(lines):
            return json.dumps([int(word in line.split("<<", 1)[1].split(">>")[0].split()) for line in lines])
        there = [int(word in line.split()) for line in lines]
        if "apart by commas" in system:
            return ", ".join(str(number) for number, here in enumerate(there, 1) if here) or "None"
        return json.dumps(there)


@contextmanager
def server(knows):
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_POST(self):
            if self.path.startswith("/page"):
                return self.send(200, "<html>a page</html>")
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with knows.lock:
                knows.asked.append((request, self.headers["Authorization"]))
                failure = knows.failures.pop(0) if knows.failures else None
                wrong = knows.wrong.pop(0) if knows.wrong else None
            if failure:
                return self.send(failure, {"error": {"message": knows.refusal}})
            message = {"role": "assistant", "content": knows.reply(request["messages"]) if wrong is None else wrong}
            finish = "content_filter" if wrong == "" else "stop"
            choice = {"index": 0, "message": message, "finish_reason": finish}
            usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
            return self.send(
                200,
                knows.change(
                    {
                        "id": "x",
                        "object": "chat.completion",
                        "created": 0,
                        "model": "m",
                        "choices": [choice],
                        "usage": usage,
                    }
                ),
            )

        def send(self, status, body):
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            if status == 429:
                self.send_header("Retry-After", "0")
            self.end_headers()
            self.wfile.write(data)

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{running.server_port}/v1"
    finally:
        running.shutdown()
        running.server_close()


def llm(url, **options):
    return {"type": "llm", "base_url": url, "model": "m", **options}


def first_scores(result):
    return {name: score.value for name, score in result.scores.items() if isinstance(score, Score)}
