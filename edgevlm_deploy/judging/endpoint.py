"""One question to a language model behind an OpenAI-compatible chat-completions endpoint.

The standard library's client: one POST a question is all there is to do. A redirect is never followed,
because the key would travel with it.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from edgevlm_deploy.errors import EndpointError

KEY_VARIABLE = "EDGEVLM_JUDGE_API_KEY"
MAX_RESPONSE_BYTES = 1 << 20
MAX_ANSWER_TOKENS = 200
LONGEST_WAIT_S = 60.0
_TRY_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_LOOPBACK = re.compile(r"localhost|127\.\d+\.\d+\.\d+|::1")
_CHUNK = 1 << 16


class _TryAgain(Exception):
    """What may be otherwise the next time; `after_s` is what the server asked to wait."""

    def __init__(self, why: str, after_s: float | None = None) -> None:
        super().__init__(why)
        self.after_s = after_s


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


@dataclass(frozen=True)
class Endpoint:
    """Where a model answers. `open_endpoint` makes one that is checked."""

    url: str
    """Base, before `/chat/completions`."""
    model: str
    key: str = field(default="", repr=False)
    timeout_s: float = 60.0
    """Of one attempt, whole answer included."""
    attempts: int = 5
    first_wait_s: float = 1.0
    """Before the second attempt; doubled before each further one."""
    sleep: Callable[[float], None] = time.sleep

    def ask(self, system: str, user: str, picture: bytes | None = None) -> str:
        """The model's answer at temperature 0. `picture`: a PNG file, sent with the question.

        Raises EndpointError when the endpoint refuses, or does not answer in `attempts` attempts.
        """
        body = json.dumps(self._request(system, user, picture)).encode()
        outcome = self._attempt(body)
        for retry in range(self.attempts - 1):
            if isinstance(outcome, str):
                break
            wait = self.first_wait_s * 2**retry
            self.sleep(min(max(wait, outcome.after_s or 0.0), LONGEST_WAIT_S))
            outcome = self._attempt(body)
        if isinstance(outcome, str):
            return outcome
        raise EndpointError(
            f"{self.url}: {outcome}, {self.attempts} times in a row. Check the endpoint, or give it longer "
            "with --timeout."
        ) from outcome

    def _attempt(self, body: bytes) -> str | _TryAgain:
        try:
            return self._post(body)
        except _TryAgain as trouble:
            return trouble

    def _request(self, system: str, user: str, picture: bytes | None) -> dict[str, Any]:
        content: Any = user
        if picture is not None:
            uri = "data:image/png;base64," + base64.b64encode(picture).decode("ascii")
            content = [{"type": "text", "text": user}, {"type": "image_url", "image_url": {"url": uri}}]
        return {
            "model": self.model,
            "temperature": 0,
            "max_tokens": MAX_ANSWER_TOKENS,
            "messages": [{"role": "system", "content": system}, {"role": "user", "content": content}],
        }

    def _post(self, body: bytes) -> str:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "edgevlm"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(f"{self.url}/chat/completions", body, headers)
        try:
            with urllib.request.build_opener(_NoRedirect).open(request, timeout=self.timeout_s) as response:
                data = self._read(response)
        except urllib.error.HTTPError as error:
            with error:
                raise self._refusal(error) from error
        except urllib.error.URLError as error:
            raise _TryAgain(f"cannot be reached ({_no_time(error.reason) or error.reason})") from error
        except (TimeoutError, http.client.HTTPException, OSError) as error:
            raise _TryAgain(_no_time(error) or f"the connection broke ({error!r})") from error
        return self._content(data)

    def _read(self, response: Any) -> bytes:
        """At most MAX_RESPONSE_BYTES, within the timeout even when they come in drops."""
        began, data = time.monotonic(), b""
        while chunk := response.read1(_CHUNK):
            data += chunk
            if len(data) > MAX_RESPONSE_BYTES:
                raise EndpointError(
                    f"{self.url}: the response is larger than {MAX_RESPONSE_BYTES:,} bytes, which no "
                    "judgement is. Check that this is a chat-completions endpoint."
                )
            if time.monotonic() - began > self.timeout_s:
                raise TimeoutError
        return data

    def _refusal(self, error: urllib.error.HTTPError) -> Exception:
        if error.code in _TRY_AGAIN:
            after = error.headers.get("Retry-After", "")
            return _TryAgain(f"it answers HTTP {error.code}", float(after) if after.isdigit() else None)
        hint = {
            401: "Check the key.",
            403: "Check the key and what it may do.",
            404: "Check the base URL (often it ends in /v1) and the name of the model.",
        }.get(error.code, "Redirects are not followed: give the URL itself." if error.code < 400 else "")
        return EndpointError(
            f"{self.url}: HTTP {error.code} {error.reason}. {hint} {self._said(error)}".strip()
        )

    def _said(self, error: urllib.error.HTTPError) -> str:
        """The beginning of what came with a refusal; servers like to repeat the key there."""
        try:
            text = " ".join(error.read(400).decode("utf-8", "replace").split())
        except (OSError, http.client.HTTPException):
            return ""
        return f"It says: {text.replace(self.key, '…') if self.key else text}" if text else ""

    def _content(self, data: bytes) -> str:
        try:
            content = json.loads(data)["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise _TryAgain(f"the response is no chat completion ({data[:80]!r})") from error
        return content if isinstance(content, str) else ""


def _no_time(error: object) -> str:
    return "it did not answer in time" if isinstance(error, TimeoutError) else ""


def open_endpoint(
    url: str, model: str, key_variable: str = KEY_VARIABLE, timeout_s: float = 60.0, attempts: int = 5
) -> Endpoint:
    """The endpoint at the base URL `url`, with the key that the environment variable holds, if it does.

    Raises EndpointError when the URL is none, carries credentials, or would send the key unencrypted to
    another machine.
    """
    base = url.rstrip("/").removesuffix("/chat/completions")
    parts = urlsplit(base)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise EndpointError(
            f"{url!r}: expected the base URL of an OpenAI-compatible endpoint, for example http://localhost:8000/v1."
        )
    if parts.username or parts.password:
        raise EndpointError(
            f"{parts.hostname}: the URL carries credentials. Put the key into ${key_variable} instead."
        )
    key = os.environ.get(key_variable, "").strip()
    if key and parts.scheme == "http" and not _LOOPBACK.fullmatch(parts.hostname):
        raise EndpointError(
            f"{base}: the key in ${key_variable} would travel unencrypted. Use https, or unset the variable."
        )
    return Endpoint(base, model, key, timeout_s, attempts)
