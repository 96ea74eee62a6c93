"""Flink's REST API, by the standard library."""

import json
import ssl
import urllib.error
import urllib.request
from typing import Any

from deploy.stack.options import StackError
from deploy.stack.record import StackState

# Flink's answers hold stack traces; a message shows the end that names the cause.
MESSAGE_CHARACTERS = 2000


class RestError(StackError):
    """Flink's REST API does not answer, or answers with an error.

    Attributes:
        status: HTTP status, None when nothing answered.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        """Keep the status beside the message."""
        super().__init__(message)
        self.status = status


def get(state: StackState, path: str, timeout_s: float = 30.0) -> dict[str, Any]:
    """Ask for a resource.

    Raises:
        RestError: nothing answers, or an error does.
    """
    return _call(state, "GET", path, None, timeout_s)


def get_list(state: StackState, path: str, timeout_s: float = 30.0) -> list[dict[str, Any]]:
    """Ask for a resource that is a list, as those of metrics are.

    Raises:
        RestError: nothing answers, or an error does.
    """
    answer = _request(state, "GET", path, None, timeout_s)
    return answer if isinstance(answer, list) else []


def post(
    state: StackState, path: str, body: dict[str, Any], timeout_s: float = 60.0
) -> dict[str, Any]:
    """Start something.

    Raises:
        RestError: nothing answers, or an error does.
    """
    return _call(state, "POST", path, body, timeout_s)


def patch(state: StackState, path: str, timeout_s: float = 60.0) -> dict[str, Any]:
    """Change something, as Flink does to cancel a job.

    Raises:
        RestError: nothing answers, or an error does.
    """
    return _call(state, "PATCH", path, None, timeout_s)


def _call(
    state: StackState, method: str, path: str, body: dict[str, Any] | None, timeout_s: float
) -> dict[str, Any]:
    answer = _request(state, method, path, body, timeout_s)
    return answer if isinstance(answer, dict) else {}


def _request(
    state: StackState, method: str, path: str, body: dict[str, Any] | None, timeout_s: float
) -> Any:
    address = f"{state.flink_url}{path}"
    request = urllib.request.Request(  # noqa: S310 - flink_url is http or https
        address,
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    handlers: list[urllib.request.BaseHandler] = []
    if state.options.flink is None:
        # Our own server is on this machine: a proxy of the environment is not for it.
        handlers.append(urllib.request.ProxyHandler({}))
    if address.startswith("https:"):
        context = ssl.create_default_context(cafile=state.options.flink_ca)
        handlers.append(urllib.request.HTTPSHandler(context=context))
    try:
        with urllib.request.build_opener(*handlers).open(request, timeout=timeout_s) as answer:
            text = answer.read()
    except urllib.error.HTTPError as error:
        detail = error.read().decode("utf-8", "replace")[-MESSAGE_CHARACTERS:]
        raise RestError(f"{method} {address} answers {error.code}: {detail}", error.code) from error
    except (OSError, ValueError) as error:
        raise RestError(f"{method} {address} does not answer: {error}") from error
    try:
        return json.loads(text) if text else {}
    except ValueError as error:
        raise RestError(f"{method} {address} answers no JSON: {text[:200]!r}") from error
