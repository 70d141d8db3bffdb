"""Every way to log in to the sandbox org, and every way in which a login ends."""

import base64
import hashlib
import secrets
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from deploy.sandbox.salesforce.org import CLIENT_ID, CLIENT_SECRET, PASSWORD, USERNAME
from tests.support.sandbox_wire import Wire, org

BACK = "http://localhost:1717/callback"
EXPIRED = (400, {"error": "invalid_grant", "error_description": "expired access/refresh token"})


async def token(at: Wire, **form: Any) -> tuple[int, Any]:
    given = {"client_id": CLIENT_ID, "client_secret": CLIENT_SECRET} | form
    body = {k: v for k, v in given.items() if v is not None}
    async with at.http.post(f"{at.sandbox.url}/services/oauth2/token", data=body) as reply:
        return reply.status, await reply.json()


async def refreshed(at: Wire, refresh: str) -> tuple[int, Any]:
    return await token(at, grant_type="refresh_token", refresh_token=refresh)


async def works(at: Wire, access: str) -> bool:
    at.token = access
    return (await at.rest("GET", "/limits"))[0] == 200


async def code(at: Wire, **asked: str) -> dict[str, str]:
    """What the browser is sent back with."""
    params = {"response_type": "code", "client_id": CLIENT_ID, "redirect_uri": BACK, "state": "s1"} | asked
    async with at.http.get(f"{at.sandbox.url}/services/oauth2/authorize", params=params, allow_redirects=False) as reply:
        assert reply.status == 302, await reply.text()
        target = reply.headers["Location"]
        assert target.startswith(BACK + "?")
        return {k: v[0] for k, v in parse_qs(urlsplit(target).query).items()}


async def test_the_web_server_flow_gives_a_code_once_and_for_it_a_refresh_token() -> None:
    async with org() as at:
        back = await code(at)
        assert back["state"] == "s1"
        status, body = await token(at, grant_type="authorization_code", code=back["code"], redirect_uri=BACK)
        assert status == 200
        assert {"access_token", "refresh_token", "instance_url", "id", "issued_at", "signature", "scope", "token_type"} == body.keys()
        assert await works(at, body["access_token"])
        again, reply = await token(at, grant_type="authorization_code", code=back["code"], redirect_uri=BACK)
        assert (again, reply["error"]) == (400, "invalid_grant")
        status, more = await refreshed(at, body["refresh_token"])
        assert status == 200
        assert "refresh_token" not in more
        assert await works(at, more["access_token"])


async def test_a_code_with_a_challenge_needs_its_verifier_and_its_address() -> None:
    async with org() as at:
        verifier = secrets.token_urlsafe(48)
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().rstrip("=")
        asked = {"code_challenge": challenge, "code_challenge_method": "S256"}
        for given, error in (
            ({"code_verifier": "wrong"}, "invalid_grant"),
            ({"redirect_uri": "http://elsewhere.example.org"}, "redirect_uri_mismatch"),
            ({"client_secret": "wrong"}, "invalid_client"),
        ):
            back = await code(at, **asked)
            form = {"grant_type": "authorization_code", "code": back["code"], "redirect_uri": BACK, "code_verifier": verifier} | given
            status, body = await token(at, **form)
            assert (status, body["error"]) == (400, error)
        back = await code(at, **asked)
        form = {"grant_type": "authorization_code", "code": back["code"], "redirect_uri": BACK, "code_verifier": verifier}
        assert (await token(at, **form, client_secret=None))[0] == 200
        assert (await code(at, response_type="token"))["error"] == "unsupported_response_type"
        assert (await code(at, code_challenge="x", code_challenge_method="plain"))["error"] == "invalid_request"


async def test_a_refresh_token_is_good_until_it_is_revoked_and_takes_its_access_tokens_along() -> None:
    async with org() as at:
        refresh = (await at.control("POST", "grants"))["refresh_token"]
        first, second = [(await refreshed(at, refresh))[1]["access_token"] for _ in range(2)]
        assert await works(at, first)
        assert await works(at, second)
        async with at.http.post(f"{at.sandbox.url}/services/oauth2/revoke", data={"token": refresh}) as reply:
            assert reply.status == 200
        assert not await works(at, first)
        assert not await works(at, second)
        assert await refreshed(at, refresh) == EXPIRED
        assert await refreshed(at, "nonsense") == EXPIRED


async def test_rotating_refresh_tokens_are_good_once_and_a_second_use_ends_all_that_came_of_them() -> None:
    async with org() as at:
        await at.control("POST", "settings", {"rotate_refresh_tokens": 1})
        refresh = (await at.control("POST", "grants"))["refresh_token"]
        _, first = await refreshed(at, refresh)
        _, second = await refreshed(at, first["refresh_token"])
        assert len({refresh, first["refresh_token"], second["refresh_token"]}) == 3
        assert await works(at, second["access_token"])
        assert await refreshed(at, refresh) == EXPIRED
        assert not await works(at, second["access_token"])
        assert await refreshed(at, second["refresh_token"]) == EXPIRED


async def test_a_sixth_grant_ends_the_oldest() -> None:
    async with org() as at:
        grants = [(await at.control("POST", "grants"))["refresh_token"] for _ in range(6)]
        assert [(await refreshed(at, g))[0] for g in grants] == [400, 200, 200, 200, 200, 200]


async def test_access_that_is_taken_away_and_given_back_needs_no_other_login_where_none_was_kept() -> None:
    async with org() as at:
        refresh = (await at.control("POST", "grants"))["refresh_token"]
        _, body = await refreshed(at, refresh)
        await at.fault("revoke")
        assert not await works(at, body["access_token"])
        assert await refreshed(at, refresh) == EXPIRED
        await at.control("DELETE", "faults")
        assert (await refreshed(at, refresh))[0] == 200
        assert (await at.control("DELETE", "grants"))["ended"] == 1
        assert await refreshed(at, refresh) == EXPIRED


async def test_a_user_logs_in_by_password_and_not_when_frozen() -> None:
    async with org() as at:
        given = {"grant_type": "password", "username": USERNAME, "password": PASSWORD}
        status, body = await token(at, **given)
        assert status == 200
        assert await works(at, body["access_token"])
        for wrong in ({"password": "no"}, {"username": "nobody@example.org"}, {"password": None}):
            status, refused = await token(at, **given | wrong)
            assert (status, refused) == (400, {"error": "invalid_grant", "error_description": "authentication failure"})
        await at.control("POST", "users", {"username": USERNAME, "active": False})
        assert not await works(at, body["access_token"])
        assert (await token(at, **given))[1]["error"] == "inactive_user"
        await at.control("POST", "users", {"username": USERNAME, "active": True})
        assert (await token(at, **given))[0] == 200


async def test_too_many_logins_in_an_hour_are_refused_and_use_up_no_refresh_token() -> None:
    async with org() as at:
        await at.control("POST", "settings", {"logins_per_hour": 2, "rotate_refresh_tokens": 1})
        refresh = (await at.control("POST", "grants"))["refresh_token"]
        _, body = await refreshed(at, refresh)  # the client of the test was the first
        status, refused = await refreshed(at, body["refresh_token"])
        assert (status, refused["error"]) == (400, "rate_limit_exceeded")
        await at.control("POST", "settings", {"logins_per_hour": 0})
        assert (await refreshed(at, body["refresh_token"]))[0] == 200


async def test_an_access_token_ends_some_time_after_its_last_use() -> None:
    async with org() as at:
        await at.control("POST", "settings", {"token_seconds": 7200})
        first = at.token
        assert await works(at, first)
        await at.fault("clock-skew", seconds=7000)
        assert await works(at, first)
        await at.fault("clock-skew", seconds=14_300)
        assert not await works(at, first)


async def test_the_user_behind_a_token_can_be_asked_for() -> None:
    async with org() as at:
        async with at.http.get(f"{at.sandbox.url}/services/oauth2/userinfo", headers=at.headers) as reply:
            body = await reply.json()
        assert (body["preferred_username"], body["organization_id"], body["user_id"]) == (
            USERNAME,
            at.sandbox.org.id,
            at.sandbox.org.user_id,
        )
        async with at.http.get(f"{at.sandbox.url}/services/oauth2/userinfo") as reply:
            assert reply.status == 403


@pytest.mark.parametrize("wrong", [{"client_id": "nobody"}, {"redirect_uri": "javascript:alert(1)"}, {"redirect_uri": ""}])
async def test_the_browser_is_sent_nowhere_for_an_unknown_app_or_a_strange_address(wrong: dict[str, str]) -> None:
    async with org() as at:
        params = {"response_type": "code", "client_id": CLIENT_ID, "redirect_uri": BACK} | wrong
        async with at.http.get(f"{at.sandbox.url}/services/oauth2/authorize", params=params, allow_redirects=False) as reply:
            assert reply.status == 400
            assert "Location" not in reply.headers
