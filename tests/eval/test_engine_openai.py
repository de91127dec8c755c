"""Endpoints as engines: what is sent, what failures do, and that nothing secret gets out."""

import base64
import io
import json
import logging
import threading
from collections import Counter
from email.utils import formatdate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage

import phantom
from chat_server import Reply, question, serving
from medmvl.core.schema import Sample, SampleError
from medmvl.eval.engines import endpoint
from medmvl.eval.engines.engine import EngineError
from medmvl.eval.engines.table import open_engine
from medmvl.eval.metrics.metric import MetricUnavailable
from medmvl.eval.task import Generation

GREEDY = Generation(max_new_tokens=12)
SECRET = "sk-very-secret-0123456789"


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "a.png"
    PillowImage.fromarray(np.random.default_rng(0).integers(0, 256, (40, 80, 3), np.uint8)).save(path)
    return path


def asked(name: str, *content: object) -> Sample:
    parts = [
        {"type": "volume" if part.suffix == ".gz" else "image", "path": str(part)}
        if isinstance(part, Path)
        else {"type": "text", "text": part}
        for part in content
    ]
    return Sample.from_dict({"id": name, "messages": [{"role": "user", "content": parts}]})


def questions(count: int) -> list[Sample]:
    return [asked(str(number), f"question {number}") for number in range(count)]


def opened(url: str, **options: Any) -> Any:
    return open_engine(f"openai:{url}#small", **{"backoff": 0.001, "timeout": 5.0, **options})


def echo(body: dict[str, Any], before: int) -> Reply:
    return Reply(f"answer to {question(body)}")


def test_what_is_sent_is_the_question_and_its_pictures(picture: Path, tmp_path: Path) -> None:
    volume = phantom.write(tmp_path / "scan.nii.gz")
    history = Sample.from_dict(
        {
            "id": "h",
            "messages": [
                {"role": "system", "content": "Be short."},
                {"role": "user", "content": [{"type": "image", "path": str(picture)}, {"type": "text", "text": "A?"}]},
                {"role": "assistant", "content": "B."},
                {"role": "user", "content": "And now?"},
            ],
        }
    )
    with serving(echo) as server:
        engine = opened(server.url, slices=3)
        found = dict(engine.answer([asked("p", picture, "What?"), asked("v", volume, "Where?"), history], GREEDY))
    assert found == {0: "answer to What?", 1: "answer to Where?", 2: "answer to And now?"}
    assert set(server.paths) == {"/v1/chat/completions"}
    by_question = {question(body): body for body in server.asked}
    body = by_question["What?"]
    assert {key: body[key] for key in body if key != "messages"} == {
        "model": "small", "max_tokens": 12, "temperature": 0.0,
    }  # fmt: skip
    image, text = body["messages"][0]["content"]
    assert text == {"type": "text", "text": "What?"}
    content = base64.b64decode(image["image_url"]["url"].removeprefix("data:image/png;base64,"))
    seen = np.asarray(PillowImage.open(io.BytesIO(content)))
    np.testing.assert_array_equal(seen, np.asarray(PillowImage.open(picture)))
    assert [part["type"] for part in by_question["Where?"]["messages"][0]["content"]] == ["image_url"] * 3 + ["text"]
    assert [message["role"] for message in by_question["And now?"]["messages"]] == [
        "system",
        "user",
        "assistant",
        "user",
    ]
    assert {type(message["content"]) for message in by_question["And now?"]["messages"]} == {str, list}
    assert all(headers["authorization"] == f"Bearer {SECRET}" for headers in server.headers)


def test_many_are_asked_at_once_and_answers_come_as_they_complete() -> None:
    gate = threading.Event()

    def reply(body: dict[str, Any], before: int) -> Reply:
        if question(body) == "question 0":
            gate.wait(10)
        return echo(body, before)

    with serving(reply) as server:
        found = opened(server.url, concurrency=4).answer(questions(12), GREEDY)
        first = [next(found) for _ in range(11)]
        assert sorted(place for place, _ in first) == list(range(1, 12))
        gate.set()
        assert list(found) == [(0, "answer to question 0")]
        assert 2 <= server.busiest <= 4
    with serving(lambda body, before: Reply("x", delay=0.01)) as server:
        assert len(list(opened(server.url, concurrency=1).answer(questions(6), GREEDY))) == 6
        assert server.busiest == 1


@pytest.mark.parametrize(
    "failure",
    [
        Reply("overloaded", 500),
        Reply("bad gateway", 502),
        Reply("slow down", 429),
        Reply("timed out", 408),
        Reply(raw=b"<html>oops</html>"),
        Reply(raw=b'{"choices": []}'),
        Reply(raw=b'{"choices": [{"message": {"content": 7}}]}'),
        Reply(raw=b"[" * 100_000),
        Reply(raw=b"\xff\xfe\x00"),
        Reply(hang_up=True),
        Reply(delay=1.5),
    ],
    ids=["500", "502", "429", "408", "html", "empty", "number", "deep", "bytes", "hang up", "timeout"],
)
def test_failures_that_may_pass_are_tried_again(failure: Reply) -> None:
    def reply(body: dict[str, Any], before: int) -> Reply:
        return failure if before < 2 and question(body) == "question 1" else echo(body, before)

    with serving(reply) as server:
        engine = opened(server.url, retries=2, timeout=0.5)
        assert dict(engine.answer(questions(3), GREEDY)) == {k: f"answer to question {k}" for k in range(3)}
        assert Counter(map(question, server.asked))["question 1"] == 3


def test_an_endpoint_that_stays_broken_stops_the_run_and_keeps_what_was_said() -> None:
    def reply(body: dict[str, Any], before: int) -> Reply:
        return Reply(f"out of memory\x1b[31m {SECRET}", 500) if question(body) == "question 5" else echo(body, before)

    with serving(reply) as server:
        engine = opened(server.url, retries=2, concurrency=2)
        found: dict[int, Any] = {}
        with pytest.raises(EngineError, match="failed 3 times, last: status 500: out of memory") as error:
            for place, said in engine.answer(questions(8), GREEDY):
                found[place] = said
        assert set(range(5)) <= set(found) <= {0, 1, 2, 3, 4, 6, 7}
        assert "started again" in str(error.value)
        assert SECRET not in str(error.value) and "\x1b" not in str(error.value)
        assert Counter(map(question, server.asked))["question 5"] == 3


def test_nobody_there_is_an_engine_error() -> None:
    with serving(echo) as server:
        engine = opened(server.url, retries=1)
    with pytest.raises(EngineError, match="failed 2 times, last: ConnectError"):
        list(engine.answer(questions(2), GREEDY))


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refused_request_loses_no_other(status: int) -> None:
    def reply(body: dict[str, Any], before: int) -> Reply:
        return Reply(f"too long, {SECRET}", status) if question(body) == "question 1" else echo(body, before)

    with serving(reply) as server:
        found = dict(opened(server.url).answer(questions(3), GREEDY))
        assert len(server.asked) == 3
    assert found[0] == "answer to question 0" and found[2] == "answer to question 2"
    assert isinstance(found[1], SampleError) and found[1].sample_id == "1"
    assert f"status {status}: too long" in str(found[1]) and SECRET not in str(found[1])


@pytest.mark.parametrize(("status", "hint"), [(401, "missing or wrong"), (403, "may not"), (404, "/chat/completions")])
def test_what_fails_for_all_stops_at_once(status: int, hint: str) -> None:
    with serving(lambda body, before: Reply("no", status)) as server:
        with pytest.raises(EngineError, match=hint):
            list(opened(server.url, concurrency=1).answer(questions(20), GREEDY))
        assert len(server.asked) == 1


def test_redirects_are_not_followed() -> None:
    with serving(echo) as other:
        away = Reply("moved", 307, {"location": f"{other.url}/chat/completions"})
        with serving(lambda body, before: away) as server, pytest.raises(EngineError, match="not followed"):
            list(opened(server.url).answer(questions(1), GREEDY))
        assert other.asked == []


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(echo) as proxy, serving(echo) as server:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url.removesuffix("/v1"))
        assert len(list(opened(server.url).answer(questions(2), GREEDY))) == 2
        assert proxy.asked == [] and len(server.asked) == 2


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (Reply(None), ""),
        (Reply(""), ""),
        (Reply("  two\nlines "), "  two\nlines "),
        (Reply(raw=b'{"choices": [{"finish_reason": "length", "message": {"content": "cut o"}}]}'), "cut o"),
        (Reply(raw=b'{"choices": [{"message": {"content": "a\\ud800b"}}]}'), "a?b"),
    ],
)
def test_whatever_text_comes_is_the_answer(reply: Reply, text: str) -> None:
    with serving(lambda body, before: reply) as server:
        assert list(opened(server.url).answer(questions(1), GREEDY)) == [(0, text)]


def test_an_endless_answer_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "_LARGEST_REPLY", 1000)
    with (
        serving(lambda body, before: Reply("x" * 2000)) as server,
        pytest.raises(EngineError, match="longer than 1000"),
    ):
        list(opened(server.url, retries=0).answer(questions(1), GREEDY))


def test_broken_files_are_told_and_the_others_asked(picture: Path, tmp_path: Path) -> None:
    with serving(echo) as server:
        found = dict(
            opened(server.url).answer([asked("a", tmp_path / "gone.png", "?"), asked("b", picture, "?")], GREEDY)
        )
    assert isinstance(found[0], SampleError) and "gone.png" in str(found[0])
    assert found[1] == "answer to ?"


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [("0.2", 0.15, 2), (formatdate(4102444800), 0.25, 2), ("soon", 0, 0.2), ("-5", 0, 0.2), ("", 0, 0.2)],
)
def test_retry_after_is_honoured_within_reason(
    monkeypatch: pytest.MonkeyPatch, header: str, least: float, most: float
) -> None:
    monkeypatch.setattr(endpoint, "_LONGEST_WAIT", 0.3)
    waits = []
    wait = threading.Event.wait
    monkeypatch.setattr(threading.Event, "wait", lambda self, timeout=None: waits.append(timeout) or wait(self, 0))

    def reply(body: dict[str, Any], before: int) -> Reply:
        return Reply("busy", 429, {"retry-after": header}) if before == 0 else echo(body, before)

    with serving(reply) as server:
        assert list(opened(server.url, concurrency=1).answer(questions(1), GREEDY)) == [(0, "answer to question 0")]
    told = [seconds for seconds in waits if seconds is not None and seconds != 0.01]
    assert least <= max(told, default=0) <= most


def test_leaving_early_asks_nothing_more() -> None:
    with serving(lambda body, before: Reply("x", delay=0.02)) as server:
        found = opened(server.url, concurrency=2).answer(questions(50), GREEDY)
        next(found)
        found.close()
        assert len(server.asked) < 10


@pytest.mark.parametrize(
    "url",
    ["http://10.0.0.7:8000/v1", "https://api.example.com/v1", "http://127.0.0.1.example.com/v1", "http://0.0.0.0/v1",
     "http://localhost.example.com/v1", "http://[2001:db8::1]/v1"],
)  # fmt: skip
def test_other_machines_need_leave(url: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(EngineError, match="is another machine"):
        opened(url)
    logging.getLogger("medmvl").propagate = True
    engine = opened(url, allow_remote=True)
    assert engine.remote
    assert ("can be read on the way" in caplog.text) == url.startswith("http:")


@pytest.mark.parametrize(
    "url", ["http://localhost:8000/v1", "http://127.0.0.1/v1", "http://[::1]:80/v1", "http://127.1.2.3/v1"]
)
def test_this_machine_needs_no_leave(url: str) -> None:
    assert not opened(url).remote


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("openai:http://localhost:8000/v1", "no model is named"),
        ("openai:localhost:8000/v1#m", "http://HOST:PORT"),
        ("openai:ftp://localhost/v1#m", "http://HOST:PORT"),
        ("openai:http://#m", "http://HOST:PORT"),
        ("openai:http://localhost:99999/v1#m", "not one"),
        (f"openai:http://user:{SECRET}@localhost/v1#m", "nothing secret"),
        (f"openai:ftp://user:{SECRET}@localhost/v1#m", "without user and password"),
        (f"openai:http://localhost/v1?key={SECRET}#m", "nothing secret"),
    ],
)
def test_addresses_that_are_none_are_refused(target: str, message: str) -> None:
    with pytest.raises(EngineError, match=message) as error:
        open_engine(target)
    assert SECRET not in str(error.value)


@pytest.mark.parametrize(
    "wrong",
    [{"concurrency": 0}, {"retries": -1}, {"timeout": 0}, {"backoff": -1.0}, {"token_limit": "n"}, {"slices": 0}],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"concurrency|token_limit|slices"):
        opened("http://localhost/v1", **wrong)


def test_the_key_is_told_to_the_endpoint_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("medmvl").propagate = True
    caplog.set_level(logging.DEBUG)
    with serving(lambda body, before: Reply(f"you said {SECRET}", 500)) as server:
        engine = opened(server.url, retries=1)
        with pytest.raises(EngineError) as error:
            list(engine.answer(questions(1), GREEDY))
        assert "you said [OPENAI_API_KEY]" in str(error.value)
        told = json.dumps([engine.name, engine.hash, str(vars(engine)), str(error.value), caplog.text])
        assert SECRET not in told
        monkeypatch.setenv("OPENAI_API_KEY", "two\nlines and spaces")
        with pytest.raises(EngineError, match="characters that no key has") as error:
            list(engine.answer(questions(1), GREEDY))
        assert "two" not in str(error.value)
    monkeypatch.delenv("OPENAI_API_KEY")
    with serving(echo) as server:
        list(opened(server.url).answer(questions(1), GREEDY))
        assert "authorization" not in server.headers[0]


def test_what_decides_answers_decides_the_hash() -> None:
    one = opened("http://localhost:8000/v1")
    assert one.hash == opened("http://localhost:8000/v1", concurrency=2, retries=0).hash
    others = [
        opened("http://localhost:8001/v1"),
        opened("http://localhost:8000/v1", slices=3),
        opened("http://localhost:8000/v1", boxes="qwen"),
    ]
    assert len({one.hash, *(other.hash for other in others)}) == 4
    assert one.name == "openai:small at localhost:8000"
    assert open_engine("openai:http://localhost:8000/v1#org/model#2").name == "openai:org/model#2 at localhost:8000"


def test_likelihoods_are_not_to_be_had() -> None:
    with pytest.raises(MetricUnavailable, match="does not tell how likely"):
        opened("http://localhost/v1").likelihoods(questions(1), [["a"]])


def test_the_longest_answer_goes_by_the_name_that_the_endpoint_knows() -> None:
    with serving(echo) as server:
        engine = opened(server.url, token_limit="max_completion_tokens")
        list(engine.answer(questions(1), Generation(max_new_tokens=3, temperature=0.5)))
        assert server.asked[0]["max_completion_tokens"] == 3 and "max_tokens" not in server.asked[0]
        assert server.asked[0]["temperature"] == 0.5
