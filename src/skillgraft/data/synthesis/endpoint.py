"""A thin client of OpenAI-compatible chat endpoints: one prompt in, one text out, retried, never redirected.

The key comes from an environment variable and goes nowhere but into the request's header.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import httpx2

from skillgraft.data.synthesis.generation import Generated
from skillgraft.errors import EndpointError
from skillgraft.models.reasoning import without_reasoning
from skillgraft.settings.synthesis import EndpointSettings

LARGEST_REPLY = 1 << 24
"""Bytes after which a reply is nonsense."""
LONGEST_WAIT = 60.0
"""Seconds between two tries at most, whatever the server asks for."""
_PASSING = {408, 409, 425, 429}


class _TryAgainError(Exception):
    """This try failed in a way that another may not; `wait` is what the server asked for, in seconds."""

    def __init__(self, why: str, wait: float = 0.0) -> None:
        super().__init__(why)
        self.wait = wait


class Endpoint:
    """`ask` may be called from several threads. Use as a context manager."""

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key: str | None = None,
        timeout_seconds: float = 120.0,
        retries: int = 5,
        backoff_seconds: float = 1.0,
        template: Mapping[str, Any] = MappingProxyType({}),
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        self.url, self.model = f"{url.rstrip('/')}/chat/completions", model
        self.template = dict(template)
        self.timeout_seconds, self.retries = timeout_seconds, retries
        self.key, self.stopped = key, threading.Event()
        self.backoff_seconds, self.sleep = backoff_seconds, sleep or self.stopped.wait
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.client = httpx2.Client(timeout=timeout_seconds, headers=headers, follow_redirects=False)

    @classmethod
    def from_settings(cls, settings: EndpointSettings, key: str | None) -> Endpoint:
        """Return the endpoint that a recipe names."""
        return cls(
            settings.url,
            settings.model,
            key=key,
            timeout_seconds=settings.timeout_seconds,
            retries=settings.retries,
            template=settings.chat_template_kwargs,
        )

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def stop(self) -> None:
        """Let every call of `ask` that waits for its next try give up."""
        self.stopped.set()

    def ask(self, prompt: str, *, temperature: float, top_p: float, max_tokens: int, seed: int) -> Generated:
        """Return the endpoint's reply to `prompt`.

        A reply that times out, breaks off, is nonsense, or has a status of 408, 409, 425, 429 or 5xx is asked for
        again up to `retries` times, after 1, 2, 4, … `backoff_seconds` or what the server asks for.

        Raises:
            EndpointError: no usable reply after all tries, or a status that another try does not change.
        """
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": temperature,
            "top_p": top_p,
            "max_tokens": max_tokens,
            "seed": seed,
            **({"chat_template_kwargs": self.template} if self.template else {}),
        }
        for number in range(self.retries + 1):
            try:
                return self._try(body)
            except _TryAgainError as error:
                if number == self.retries or self.stopped.is_set():
                    raise EndpointError(
                        f"endpoint {self.url}: {error}, in try {number + 1} of {self.retries + 1}; what it wrote "
                        "before is kept: run again to go on, or see to the endpoint first"
                    ) from error
                self.sleep(min(max(self.backoff_seconds * 2**number, error.wait), LONGEST_WAIT))
        raise AssertionError("unreachable")

    def _try(self, body: dict[str, Any]) -> Generated:
        ends = time.monotonic() + self.timeout_seconds
        content = bytearray()
        try:
            with self.client.stream("POST", self.url, json=body) as response:
                for part in response.iter_bytes():
                    content += part
                    if len(content) > LARGEST_REPLY:
                        raise _TryAgainError(f"a reply of more than {LARGEST_REPLY >> 20} MiB")
                    if time.monotonic() > ends:
                        raise _TryAgainError(f"no whole reply within {self.timeout_seconds:g} seconds")
        except httpx2.TimeoutException as error:
            raise _TryAgainError(f"no reply within {self.timeout_seconds:g} seconds") from error
        except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
            raise EndpointError(f"endpoint {self.url}: {error}; expected http://HOST/v1 or https://HOST/v1") from error
        except httpx2.HTTPError as error:
            raise _TryAgainError(
                f"cannot be reached or broke off ({_short(str(error) or type(error).__name__)})"
            ) from error
        status = f"status {response.status_code} ({self._said(bytes(content))})"
        if response.status_code in _PASSING or response.status_code >= 500:
            raise _TryAgainError(status, _seconds(response.headers.get("Retry-After")))
        if response.status_code != 200:
            raise EndpointError(f"endpoint {self.url}: {status}; check url, model and key")
        return self._read(bytes(content))

    def _read(self, content: bytes) -> Generated:
        try:
            reply = json.loads(content)
            choice = reply["choices"][0]
            text, cut = choice["message"]["content"], choice.get("finish_reason") == "length"
            if text is None and cut:  # a server that keeps thoughts apart ran out of tokens before the answer
                text = ""
            if not isinstance(text, str):
                raise TypeError("the content is no text")
            text.encode()
            used = (reply.get("usage") or {}).get("total_tokens")
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
            raise _TryAgainError(f"a reply that is no chat completion: {self._said(content)}") from error
        return Generated(without_reasoning(text).strip(), not cut, used if type(used) is int else 0)

    def _said(self, content: bytes) -> str:
        """Return the server's own words on an error, short and without the key, which a server may repeat."""
        try:
            error = json.loads(content)["error"]
            message = str(error["message"] if isinstance(error, dict) else error)
        except (ValueError, TypeError, KeyError, RecursionError):
            message = content.decode(errors="replace")
        return _short(message.replace(self.key, "***") if self.key else message)


def _short(text: str) -> str:
    visible = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(visible.split())[:200] or "nothing"


def _seconds(header: str | None) -> float:
    return float(header) if header and header.isascii() and header.isdigit() else 0.0
