"""Errors of the sandbox org in the shape Salesforce sends them: HTTP status, errorCode, message, fields."""

from typing import Any


class SalesforceError(Exception):
    """A refused request. `body` is the JSON array that REST answers with."""

    def __init__(self, status: int, code: str, message: str, fields: list[str] | None = None) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status, self.code, self.message, self.fields = status, code, message, fields

    def body(self) -> list[dict[str, Any]]:
        error: dict[str, Any] = {"message": self.message, "errorCode": self.code}
        if self.fields is not None:
            error["fields"] = self.fields
        return [error]


def bad(code: str, message: str, *fields: str) -> SalesforceError:
    """A 400 about the caller's data."""
    return SalesforceError(400, code, message, list(fields))


def not_found(message: str = "The requested resource does not exist") -> SalesforceError:
    return SalesforceError(404, "NOT_FOUND", message)
