"""A chat endpoint that speaks OpenAI's protocol: many requests at once, failures retried, nothing it says trusted."""

from __future__ import annotations

import ipaddress
import json
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from medmvl.core.log import get_logger
from medmvl.eval.engines.engine import EngineError

if TYPE_CHECKING:
    import httpx2

_LOG = get_logger(__name__)

KEY = "OPENAI_API_KEY"
"""Environment variable that holds the key; there is no other way to give one."""

Messages = list[dict[str, Any]]
"""[{"role", "content"}], as the protocol has them."""

_LONGEST_WAIT = 60.0  # seconds between two tries, whatever the endpoint asks for
_LARGEST_REPLY = 16 * 2**20  # bytes
_CONNECTING = 10.0  # seconds
_HOPELESS = {
    401: f"the key in {KEY} is missing or wrong",
    402: "it wants to be paid",
    403: f"the key in {KEY} may not do this",
    404: "no such address or model; the URL is that of the API, such as http://localhost:8000/v1, and "
    "/chat/completions is added to it",
    405: "this is no chat endpoint",
}
_PASSING = (408, 429)  # and all of 500 and above
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")


class RefusedError(ValueError):
    """A request that the endpoint refuses for what is in it; others may pass."""


class _PassingError(Exception):
    """A failure that may be gone at the next try.

    Args:
        reason: what failed.
        wait: seconds that the endpoint asks to wait.
    """

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class _StoppedError(Exception):
    """A request that was given up because another one showed that there is no hope."""


@dataclass(frozen=True)
class Endpoint:
    """Where to ask, and how patiently.

    Redirects are not followed and proxies of the environment are not used: what is sent goes to this host or nowhere.

    Attributes:
        url: of the API, such as "http://localhost:8000/v1".
        model: as the endpoint calls it.
        allow_remote: the host may be another machine than this one.
        concurrency: requests under way at the same time.
        retries: further tries after a failure that may pass: no connection, no answer in time, status 408, 429 or 500
            and above, an answer that is none.
        timeout: seconds for one try.
        backoff: seconds before the second try, doubled for each further one, up to a minute, half of it by chance; an
            endpoint's Retry-After counts where it is longer.
        token_limit: what the endpoint calls the longest answer's length: "max_tokens" or "max_completion_tokens".

    Raises:
        EngineError: no URL of a host, one that holds a password or query, or another machine that is not allowed.
        ValueError: a number out of range.
    """

    url: str
    model: str
    allow_remote: bool = False
    concurrency: int = 8
    retries: int = 5
    timeout: float = 120.0
    backoff: float = 1.0
    token_limit: str = "max_tokens"

    def __post_init__(self) -> None:
        parts = _parts(self.url)
        if not self.model:
            raise EngineError(f"no model is named; write openai:{self.url}#MODEL, as the endpoint's /models lists it")
        if self.remote and not self.allow_remote:
            raise EngineError(
                f"{parts.hostname} is another machine, to which questions and pictures would be sent; if they may "
                "leave this one: --allow-remote on the command line, allow_remote=True in Python"
            )
        if self.concurrency < 1 or self.retries < 0 or self.timeout <= 0 or self.backoff < 0:
            raise ValueError(
                "concurrency is at least 1, retries and backoff at least 0, timeout above 0; got "
                f"{self.concurrency}, {self.retries}, {self.backoff} and {self.timeout}"
            )
        if self.token_limit not in ("max_tokens", "max_completion_tokens"):
            raise ValueError(f"token_limit is 'max_tokens' or 'max_completion_tokens', got {self.token_limit!r}")
        if self.remote and parts.scheme == "http":
            _LOG.warning("%s: what is sent to another machine by http can be read on the way; use https", self.name)

    @property
    def name(self) -> str:
        """Model and host."""
        return f"{self.model} at {_parts(self.url).netloc}"

    @property
    def remote(self) -> bool:
        """Whether it is another machine than this one."""
        return sends_away(self.url)

    def each(
        self, requests: Sequence[Callable[[], Messages]], max_tokens: int, temperature: float
    ) -> Iterator[tuple[int, str | ValueError]]:
        """Yield (place, answer) of requests as they come back, in any order.

        Args:
            requests: make the messages of each, in a thread of their own; ValueErrors that they raise are yielded.
            max_tokens: longest answer; one that is cut off there is an answer.
            temperature: 0 takes the likeliest token.

        Yields:
            The answer, or a `RefusedError` where the endpoint does not take that request, or the request's own error.

        Raises:
            EngineError: the endpoint failed at every try, or refuses all requests; whatever had come back was yielded.
        """
        import httpx2

        settings = {"model": self.model, self.token_limit: max_tokens, "temperature": temperature}
        stopped = threading.Event()
        failure: EngineError | None = None
        client = httpx2.Client(
            trust_env=False,
            follow_redirects=False,
            headers=_headers(),
            timeout=httpx2.Timeout(self.timeout, connect=min(self.timeout, _CONNECTING)),
            limits=httpx2.Limits(max_connections=self.concurrency),
        )
        pool = ThreadPoolExecutor(self.concurrency)
        try:
            places: dict[Future[str], int] = {
                pool.submit(self._one, client, request, settings, stopped): place
                for place, request in enumerate(requests)
            }
            for done in as_completed(places):
                error = done.exception()
                if error is None:
                    yield places[done], done.result()
                elif isinstance(error, EngineError):
                    failure = failure or error
                elif isinstance(error, ValueError):
                    yield places[done], error
                elif not isinstance(error, _StoppedError):
                    raise error
        finally:
            stopped.set()
            pool.shutdown(wait=True, cancel_futures=True)
            client.close()
        if failure is not None:
            raise failure

    def _one(
        self,
        client: httpx2.Client,
        request: Callable[[], Messages],
        settings: dict[str, Any],
        stopped: threading.Event,
    ) -> str:
        """Return the answer to one request, tried again while there is hope.

        Without hope it stops the others: what is under way may still succeed, what has not begun will not begin.
        """
        if stopped.is_set():
            raise _StoppedError
        body = {**settings, "messages": request()}
        try:
            for attempt in range(self.retries):
                try:
                    return self._try(client, body)
                except _PassingError as error:
                    wait = min(self.backoff * 2**attempt, _LONGEST_WAIT) * (0.5 + random.random() / 2)
                    _LOG.info("%s: %s; trying again", self.name, error)
                    if stopped.wait(min(max(wait, error.wait), _LONGEST_WAIT)):
                        raise _StoppedError from error
            return self._try(client, body)
        except _PassingError as error:
            stopped.set()
            raise EngineError(
                f"{self.name} failed {self.retries + 1} times, last: {error}. Answers so far are kept; the same "
                "evaluation started again asks for the rest"
            ) from error
        except EngineError:
            stopped.set()
            raise

    def _try(self, client: httpx2.Client, body: dict[str, Any]) -> str:
        import httpx2

        deadline = time.monotonic() + self.timeout
        try:
            with client.stream("POST", f"{self.url.rstrip('/')}/chat/completions", json=body) as response:
                content = _content(response, deadline)
        except httpx2.TimeoutException as error:
            raise _PassingError(f"no answer within {self.timeout:g} s") from error
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            raise _PassingError(f"{type(error).__name__}: {_clean(str(error))}") from error
        status = response.status_code
        if status == 200:
            return _answer(content)
        said = f"status {status}: {_reason(content)}"
        if status in _PASSING or status >= 500:
            raise _PassingError(said, _retry_after(response.headers.get("retry-after", "")))
        if status in _HOPELESS:
            raise EngineError(f"{self.name}: {said} ({_HOPELESS[status]})")
        if 300 <= status < 400:
            where = _clean(response.headers.get("location", "elsewhere"))
            raise EngineError(f"{self.name} redirects to {where}, which is not followed; give the address itself")
        raise RefusedError(f"{self.name}: {said}")


def sends_away(url: str) -> bool:
    """Return whether a URL leads to another machine than this one."""
    host = _parts(url).hostname or ""
    if host == "localhost":
        return False
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return True


def _parts(url: str) -> Any:
    """Return the parts of a URL that names a host and nothing that must stay secret."""
    try:
        parts = urlsplit(url)
        port = parts.port  # not read before it is asked for
    except ValueError as error:
        raise EngineError(f"an endpoint's URL is not one ({error})") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise EngineError(
            f"an endpoint is http://HOST:PORT/... or https://HOST/..., such as http://localhost:8000/v1; got {url!r}"
            if "@" not in url
            else "an endpoint is http://HOST:PORT/... or https://HOST/..., without user and password"
        )
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise EngineError(
            f"the URL of the endpoint at {parts.hostname} holds a user, password, query or fragment; a URL is written "
            f"into results, so it must hold nothing secret. The key is read from the environment: {KEY}=..."
        )
    return parts


def _headers() -> dict[str, str]:
    key = os.environ.get(KEY, "").strip()
    if key and not re.fullmatch(r"[\x21-\x7e]+", key):
        raise EngineError(f"{KEY} holds characters that no key has (white space, or none of ASCII)")
    return {"Authorization": f"Bearer {key}"} if key else {}


def _content(response: httpx2.Response, deadline: float) -> bytes:
    """Return the body, which may neither be too long nor drip for ever."""
    found = bytearray()
    for chunk in response.iter_bytes():
        found += chunk
        if len(found) > _LARGEST_REPLY:
            raise _PassingError(f"its answer is longer than {_LARGEST_REPLY} bytes")
        if time.monotonic() > deadline:
            raise _PassingError("its answer did not end in time")
    return bytes(found)


def _answer(content: bytes) -> str:
    """Return the text of a completion; no content is an empty answer."""
    try:
        text = json.loads(content)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise _PassingError(f"its answer is no chat completion: {_clean(_decoded(content))}") from error
    if text is None:
        return ""
    if not isinstance(text, str):
        raise _PassingError(f"the content of its answer is no text but {type(text).__name__}")
    return text.encode("utf-8", "replace").decode()  # halves of surrogate pairs cannot be written anywhere


def _reason(content: bytes) -> str:
    """Return what an error says about itself."""
    try:
        found = json.loads(content)
        error = found.get("error", found) if isinstance(found, dict) else found
        said = error.get("message", error) if isinstance(error, dict) else error
    except (ValueError, RecursionError):
        said = _decoded(content)
    return _clean(str(said))


def _decoded(content: bytes) -> str:
    return content[:4096].decode("utf-8", "replace")


def _clean(text: str, limit: int = 300) -> str:
    """Return a stranger's text fit for a log: one line, no control characters, and not our key if it echoes that."""
    key = os.environ.get(KEY, "").strip()
    if len(key) >= 8:
        text = text.replace(key, f"[{KEY}]")
    text = _CONTROL.sub(" ", text.encode("utf-8", "replace").decode()).strip()
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _retry_after(value: str) -> float:
    """Return the seconds of a Retry-After header, a number or a date; 0 for neither."""
    try:
        return max(float(value), 0.0) if float(value) < float("inf") else _LONGEST_WAIT
    except ValueError:
        pass
    try:
        return max(parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError):
        return 0.0
