"""Finds a running sandbox and speaks to its control paths; for the commands."""

import json
import os
import urllib.error
import urllib.request
from typing import Any


class SandboxError(Exception):
    """The sandbox could not be reached, or refused; the message says what to do."""


class SilentError(SandboxError):
    """Nothing answers at the address: not started yet, or being restarted."""


def address(url: str | None, target: str, default_port: int) -> str:
    """`--url`, else HEADRACE_SANDBOX_URL (HEADRACE_SANDBOX_ITERABLE_URL for Iterable), else the default port."""
    variable = "HEADRACE_SANDBOX_URL" if target == "salesforce" else f"HEADRACE_SANDBOX_{target.upper()}_URL"
    return (url or os.environ.get(variable) or f"http://localhost:{default_port}").rstrip("/")


def call(base: str, method: str, path: str, body: Any = None) -> Any:
    """One control request; `body` is sent as JSON, bytes as they are. Errors: SandboxError."""
    if not base.startswith(("http://", "https://")):
        raise SandboxError(f"{base!r} is not the address of a sandbox: it would start with http://")
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{base}{path}", data=data, method=method, headers={"Content-Type": "application/json"})  # noqa: S310 - checked above
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        try:
            text = json.loads(error.read()).get("error", "")
        except (ValueError, AttributeError):
            text = ""
        raise SandboxError(text or f"{base} answered {error.code}: is that a sandbox?") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise SilentError(f"no sandbox answers at {base} ({reason}); start one, or name it with --url") from None
