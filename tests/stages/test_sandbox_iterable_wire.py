"""The sandbox Iterable on the wire: keys, limits, sizes and each fault, struck as often as it was asked to."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from deploy.sandbox.iterable.server import Sandbox
from deploy.sandbox.iterable.state import API_KEY, KINDS

UPDATE = "/api/users/update"
USER = {"email": "a@example.org", "dataFields": {"n": 1}}
CUT = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, aiohttp.ClientPayloadError)


class Wire:
    def __init__(self, sandbox: Sandbox, http: aiohttp.ClientSession) -> None:
        self.sandbox, self.http, self.key = sandbox, http, API_KEY

    async def call(self, method: str, path: str, body: Any = None, **options: Any) -> tuple[int, Any]:
        sent = {} if body is None else {"data": body} if isinstance(body, bytes) else {"json": body}
        async with self.http.request(method, self.sandbox.url + path, headers={"Api-Key": self.key}, **sent, **options) as reply:
            return reply.status, await reply.json() if reply.content_type == "application/json" else await reply.text()

    async def fault(self, name: str, **options: Any) -> None:
        status, body = await self.call("POST", "/sandbox/faults", {"name": name, **options})
        assert status == 200, body

    async def users(self) -> list[str]:
        return [u["email"] for u in (await self.call("GET", "/sandbox/users"))[1]["users"]]


@asynccontextmanager
async def project() -> AsyncIterator[Wire]:
    async with Sandbox() as sandbox, aiohttp.ClientSession() as http:
        yield Wire(sandbox, http)


async def test_a_user_goes_in_is_read_back_renamed_and_deleted() -> None:
    async with project() as at:
        assert await at.call("POST", UPDATE, USER) == (200, {"msg": "", "code": "Success", "params": None})
        move = {"currentEmail": "a@example.org", "newEmail": "a+b@example.org"}
        assert (await at.call("POST", "/api/users/updateEmail", move))[0] == 200
        for path in ("/api/users/getByEmail?email=a%2Bb@example.org", "/api/users/a%2Bb@example.org"):
            assert (await at.call("GET", path))[1]["user"]["dataFields"]["n"] == 1
        assert (await at.call("DELETE", "/api/users/a%2Bb@example.org"))[0] == 200
        assert await at.call("GET", "/api/users/getByEmail?email=a%2Bb@example.org") == (200, {})


@pytest.mark.parametrize("key", ["", "wrong"])
async def test_without_its_key_nothing_is_done(key: str) -> None:
    async with project() as at:
        at.key = key
        status, body = await at.call("POST", UPDATE, USER)
        assert (status, body["code"], body["params"].keys()) == (401, "BadApiKey", {"ip", "endpoint"})
        assert await at.users() == []


async def test_a_revoked_key_is_refused_until_it_is_given_back() -> None:
    async with project() as at:
        await at.fault("revoke")
        assert [(await at.call("POST", UPDATE, USER))[0] for _ in range(3)] == [401] * 3
        await at.call("DELETE", "/sandbox/faults?name=revoke")
        assert (await at.call("POST", UPDATE, USER))[0] == 200


async def test_a_second_project_shares_nothing_with_the_first() -> None:
    async with project() as at:
        await at.call("POST", "/sandbox/keys", {"key": "second"})
        await at.call("POST", UPDATE, USER)
        at.key = "second"
        assert await at.call("GET", "/api/users/getByEmail?email=a@example.org") == (200, {})
        await at.call("POST", "/sandbox/keys", {"key": "second", "enabled": False})
        assert (await at.call("POST", UPDATE, USER))[0] == 401


@pytest.mark.parametrize(
    ("style", "body", "header"),
    [
        (
            "json",
            {
                "msg": "Exceeded rate limit of 0.001 per second for endpoint: /api/users/update, project: 2158 ",
                "code": "RateLimitExceeded",
                "params": {},
            },
            None,
        ),
        ("retry-after", {"msg": "Exceeded rate limit.", "code": "RateLimitExceeded"}, "1"),
        ("text", "Too Many Requests", None),
    ],
)
async def test_above_the_rate_of_the_project_the_answer_is_a_429_of_the_chosen_style(style: str, body: Any, header: str | None) -> None:
    async with project() as at:
        await at.call("POST", "/sandbox/settings", {"rates": {UPDATE: 0.001}, "style": style})
        assert (await at.call("POST", UPDATE, USER))[0] == 200
        async with at.http.post(at.sandbox.url + UPDATE, json=USER, headers={"Api-Key": at.key}) as reply:
            got = await reply.text() if style == "text" else await reply.json()
            assert (reply.status, got, reply.headers.get("retry-after")) == (429, body, header)
        assert (await at.call("POST", "/api/users/bulkUpdate", {"users": [USER]}))[0] == 200  # each endpoint has its own
        await at.call("POST", "/sandbox/settings", {"rates": {UPDATE: 0}})
        assert [(await at.call("POST", UPDATE, USER))[0] for _ in range(5)] == [200] * 5


async def test_a_body_above_the_size_is_refused() -> None:
    async with project() as at:
        status, body = await at.call("POST", "/api/users/bulkUpdate", b'{"users":[{"email":"a@example.org"}]' + b" " * 4_000_000 + b"}")
        assert (status, body["code"]) == (413, "BatchTooLarge")
        assert await at.users() == []


@pytest.mark.parametrize("body", [b"", b"{", b"null", b"5", b"[" * 50_000, b"\xff", b'{"users": [{"email": "\\ud800"}]}'])
async def test_what_is_no_request_is_refused(body: bytes) -> None:
    async with project() as at:
        for path in ("/api/users/bulkUpdate", "/api/users/updateEmail", "/api/users/merge", UPDATE):
            status, answer = await at.call("POST", path, body or b" ")
            assert (status, "code" in answer) == (400, True), path


async def test_a_cut_body_and_a_reset_after_the_commit_have_done_their_work() -> None:
    async with project() as at:
        for name, email in (("cut-body", "a@example.org"), ("reset-after-commit", "b@example.org")):
            await at.fault(name)
            with pytest.raises(CUT):
                await at.call("POST", UPDATE, {"email": email})
            assert email in await at.users()
            assert (await at.call("POST", UPDATE, {"email": email}))[0] == 200


async def test_a_reset_before_has_done_nothing() -> None:
    async with project() as at:
        await at.fault("reset-before")
        with pytest.raises(CUT):
            await at.call("POST", UPDATE, USER)
        assert await at.users() == []


@pytest.mark.parametrize(
    ("name", "variant", "status", "part"),
    [
        ("html-404", None, 404, "Action not found"),
        ("text-429", None, 429, "Too Many Requests"),
        ("json-429", "plain", 429, "RateLimitExceeded"),
        ("json-429", "retry-after", 429, "Exceeded rate limit."),
        ("500-json", "before", 500, "GenericError"),
        ("500-json", "mismatch", 500, "RequestFieldsTypesMismatched"),
        ("down", "503", 503, "Service temporarily unavailable"),
    ],
)
async def test_a_fault_answers_in_its_form_twice_does_nothing_and_is_over(name: str, variant: str | None, status: int, part: str) -> None:
    async with project() as at:
        await at.fault(name, times=2, variant=variant)
        for _ in range(2):
            got, body = await at.call("POST", UPDATE, USER)
            assert (got, part in str(body)) == (status, True)
        assert await at.users() == []
        assert (await at.call("POST", UPDATE, USER))[0] == 200


async def test_a_target_that_is_away_stays_away_until_cleared() -> None:
    async with project() as at:
        await at.fault("down", variant="refuse")
        for _ in range(3):
            with pytest.raises(CUT):
                await at.call("POST", UPDATE, USER)
        await at.call("DELETE", "/sandbox/faults")
        assert (await at.call("POST", UPDATE, USER))[0] == 200


async def test_latency_answers_late_and_has_done_its_work() -> None:
    async with project() as at:
        await at.fault("latency", seconds=30)
        with pytest.raises(TimeoutError):
            await at.call("POST", UPDATE, USER, timeout=aiohttp.ClientTimeout(total=0.2))
        assert await at.users() == ["a@example.org"]


async def test_the_request_log_names_who_was_written_and_what_became_of_it() -> None:
    async with project() as at:
        await at.call("POST", "/api/users/bulkUpdate", {"users": [USER, {"userId": "7"}]})
        await at.call("GET", "/api/users/getByEmail?email=x@example.org")
        log = (await at.call("GET", "/sandbox/requests"))[1]["requests"]
        assert [(e["path"], e["status"], e["users"]) for e in log] == [
            ("/api/users/bulkUpdate", 200, ["a@example.org", "7"]),
            ("/api/users/getByEmail", 200, ["x@example.org"]),
        ]
        assert all(e["began"] <= e["ended"] for e in log)


async def test_every_fault_has_a_name_and_nonsense_is_refused() -> None:
    async with project() as at:
        assert (await at.call("GET", "/sandbox/faults"))[1]["known"].keys() == KINDS.keys()
        for path, body in [
            ("faults", {"name": "nope"}),
            ("faults", {"name": "down", "variant": "x"}),
            ("faults", b"{"),
            ("settings", {"style": "x"}),
            ("settings", {"rates": {"nope": 1}}),
            ("settings", {"rates": 5}),
            ("settings", {"delete_lag": "x"}),
            ("settings", {"x": 1}),
            ("keys", {}),
            ("keys", {"key": API_KEY, "enabled": False}),
        ]:
            status, answer = await at.call("POST", f"/sandbox/{path}", body)
            assert (status, list(answer)) == (400, ["error"]), (path, body)
