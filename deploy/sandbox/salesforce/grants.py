"""What an app was granted for a user: authorization codes and refresh tokens, their rotation and its reuse detection. No HTTP."""

import base64
import hashlib
import hmac
import secrets
from dataclasses import dataclass, field

LIVE = 5  # grants of one app for one user; a further one ends the oldest
CODE_SECONDS = 900


class DeniedError(Exception):
    """A refused login: the words of the OAuth error."""

    def __init__(self, error: str, description: str) -> None:
        super().__init__(description)
        self.error, self.description = error, description


@dataclass(slots=True, eq=False)
class Grant:
    """`refresh` is the refresh token of now, `spent` those it followed, `access` the access tokens given under it."""

    client_id: str
    username: str
    refresh: str
    spent: set[str] = field(default_factory=set)
    access: set[str] = field(default_factory=set)


@dataclass(slots=True)
class Code:
    client_id: str
    username: str
    redirect_uri: str
    challenge: str | None
    until: float


class Grants:
    def __init__(self) -> None:
        self.live: list[Grant] = []
        self._codes: dict[str, Code] = {}

    def make(self, client_id: str, username: str) -> tuple[Grant, list[Grant]]:
        """A new grant, and those it pushed out."""
        same = [g for g in self.live if (g.client_id, g.username) == (client_id, username)]
        out = same[: max(0, len(same) - LIVE + 1)]
        made = Grant(client_id, username, _token())
        self.live = [g for g in self.live if g not in out] + [made]
        return made, out

    def code(self, client_id: str, username: str, redirect_uri: str, challenge: str | None, now: float) -> str:
        """An authorization code, good for one exchange."""
        made = f"aPrx{secrets.token_urlsafe(40)}=="
        self._codes[made] = Code(client_id, username, redirect_uri, challenge, now + CODE_SECONDS)
        return made

    def exchange(self, client_id: str, code: str, redirect_uri: str, verifier: str, now: float) -> str:
        """The user behind a code. Errors: DeniedError; the code is used up all the same."""
        found = self._codes.pop(code, None)
        if found is None or found.client_id != client_id:
            raise DeniedError("invalid_grant", "invalid authorization code")
        if now > found.until:
            raise DeniedError("invalid_grant", "expired authorization code")
        if redirect_uri != found.redirect_uri:
            raise DeniedError("redirect_uri_mismatch", "redirect_uri must match configuration")
        digest = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().rstrip("=")
        if found.challenge is not None and not hmac.compare_digest(digest.encode(), found.challenge.rstrip("=").encode()):
            raise DeniedError("invalid_grant", "invalid code verifier")
        return found.username

    def refreshed(self, client_id: str, value: str, *, rotate: bool) -> tuple[Grant, bool]:
        """The grant of a refresh token, with another refresh token where they rotate; whether it still lives. A token used before ends its
        whole grant: somebody has stolen it. Errors: DeniedError where it is no grant's."""
        for grant in self.live:
            if grant.client_id != client_id:
                continue
            if hmac.compare_digest(grant.refresh.encode(), value.encode()):
                if rotate:
                    grant.spent.add(grant.refresh)
                    grant.refresh = _token()
                return grant, True
            if value in grant.spent:
                self.end(grant)
                return grant, False
        raise DeniedError("invalid_grant", "expired access/refresh token")

    def end(self, grant: Grant) -> None:
        if grant in self.live:
            self.live.remove(grant)

    def by_token(self, value: str) -> Grant | None:
        return next((g for g in self.live if value == g.refresh), None)


def _token() -> str:
    return f"5Aep861{secrets.token_urlsafe(56).replace('-', '.')}"
