"""The client against a real server: what is sent, what is tried again, what is refused."""

from __future__ import annotations

import base64
import dataclasses
import time
from typing import Any

import pytest

from edgevlm_deploy.errors import EndpointError
from edgevlm_deploy.judging import endpoint as endpoints
from edgevlm_deploy.judging.endpoint import Endpoint, open_endpoint

OTHER = b'{"choices": [{"message": {"content": "other"}}]}'


def opened(server: Any, **changes: Any) -> tuple[Endpoint, list[float]]:
    """The endpoint and the waits between its attempts, which are not waited."""
    waits: list[float] = []
    made = open_endpoint(server.url, "judge-1")
    return dataclasses.replace(made, sleep=waits.append, **changes), waits


def test_one_request(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEVLM_JUDGE_API_KEY", "secret")
    server.replies = [(200, {}, OTHER)]
    assert opened(server)[0].ask("be just", "why?") == "other"
    (request,) = server.requests
    assert request["model"] == "judge-1" and request["temperature"] == 0
    assert request["messages"] == [
        {"role": "system", "content": "be just"},
        {"role": "user", "content": "why?"},
    ]
    assert server.keys == ["Bearer secret"]
    assert "secret" not in repr(opened(server)[0])


def test_a_picture_travels_as_a_data_url(server: Any) -> None:
    server.replies = [(200, {}, OTHER)]
    opened(server)[0].ask("be just", "why?", b"\x89PNG")
    text, picture = server.requests[0]["messages"][1]["content"]
    assert text == {"type": "text", "text": "why?"}
    prefix, _, data = picture["image_url"]["url"].partition(",")
    assert prefix == "data:image/png;base64" and base64.b64decode(data) == b"\x89PNG"
    assert server.keys == [""]


def test_a_wrong_key_is_not_tried_again_and_not_repeated(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "s3cr3t")
    server.replies = [(401, {}, b'{"error": "bad key s3cr3t"}')]
    made = open_endpoint(server.url, "judge-1", "MY_KEY")
    with pytest.raises(EndpointError, match=r"HTTP 401 Unauthorized\. Check the key") as raised:
        made.ask("", "")
    assert len(server.requests) == 1 and "s3cr3t" not in str(raised.value)


def test_too_many_requests_then_success(server: Any) -> None:
    busy = (429, {"Retry-After": "7"}, b"")
    server.replies = [busy, (503, {}, b""), (429, {"Retry-After": "3600"}, b""), (200, {}, OTHER)]
    made, waits = opened(server)
    assert made.ask("", "") == "other"
    assert waits == [7.0, 2.0, 60.0]


def test_a_response_that_is_no_completion(server: Any) -> None:
    server.always = lambda _: (200, {}, b"<html>gateway")
    made, waits = opened(server, attempts=3)
    with pytest.raises(EndpointError, match=r"no chat completion \(b'<html>gateway'\), 3 times in a row"):
        made.ask("", "")
    assert waits == [1.0, 2.0] and len(server.requests) == 3


def test_silence(server: Any) -> None:
    server.always = lambda _: 30.0
    made, _ = opened(server, timeout_s=0.2, attempts=2)
    began = time.monotonic()
    with pytest.raises(EndpointError, match="did not answer in time, 2 times in a row"):
        made.ask("", "")
    assert time.monotonic() - began < 5


def test_nobody_listens(server: Any) -> None:
    made = dataclasses.replace(opened(server)[0], url="http://127.0.0.1:9/v1", attempts=1)
    with pytest.raises(EndpointError, match="cannot be reached"):
        made.ask("", "")


def test_a_large_response_is_not_read(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "MAX_RESPONSE_BYTES", 1000)
    server.always = lambda _: (200, {}, b"x" * 5000)
    with pytest.raises(EndpointError, match="larger than 1,000 bytes"):
        opened(server)[0].ask("", "")
    assert len(server.requests) == 1


def test_a_redirect_is_not_followed(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEVLM_JUDGE_API_KEY", "secret")
    server.replies = [(307, {"Location": server.url + "/chat/completions"}, b"")]
    with pytest.raises(EndpointError, match=r"HTTP 307.*Redirects are not followed"):
        opened(server)[0].ask("", "")
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("localhost:8000", "expected the base URL"),
        ("file:///etc/passwd", "expected the base URL"),
        ("https://me:secret@example.com/v1", "carries credentials"),
        ("http://example.com/v1", "would travel unencrypted"),
    ],
)
def test_urls_that_are_refused(url: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEVLM_JUDGE_API_KEY", "hidden")
    with pytest.raises(EndpointError, match=message) as raised:
        open_endpoint(url, "judge-1")
    assert "secret" not in str(raised.value) and "hidden" not in str(raised.value)


def test_the_whole_address_is_taken_too() -> None:
    assert open_endpoint("http://localhost:8000/v1/chat/completions/", "m").url == "http://localhost:8000/v1"
