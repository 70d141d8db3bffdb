"""CometD over long polling with Salesforce's replay extension, sessions and error texts.

A reply takes its events from the session when it is written; where the socket is dead by then they are gone for that session,
and only a subscribe from a stored position brings them back. That is the platform's behaviour, so it must stay.
"""

import asyncio
import contextlib
import re
import secrets
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import web

from deploy.sandbox import serve
from deploy.sandbox.salesforce import bayeux
from deploy.sandbox.salesforce.bayeux import Message
from deploy.sandbox.salesforce.delivery import OVER, Delivery, Subscription
from deploy.sandbox.salesforce.limits import EVENTS
from deploy.sandbox.salesforce.oauth import OAuth
from deploy.sandbox.salesforce.org import Org

COOKIE = "BAYEUX_BROWSER"
MAX_BODY = 32_768
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


@dataclass(slots=True, eq=False)
class Session:
    client_id: str
    cookie: str
    user_id: str
    seen: float  # seconds, when the last reply went out
    channels: dict[str, Subscription] = field(default_factory=dict)
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    connects: int = 0  # the number of the newest poll; an older one is over
    holding: bool = False
    deaf: bool = False
    transport: asyncio.Transport | None = None  # of the held poll


class Cometd:
    def __init__(self, org: Org, oauth: OAuth) -> None:
        self.org, self.oauth = org, oauth
        self.sessions: dict[str, Session] = {}
        self.delivery = Delivery(org)
        org.bus.watch(self.wake)

    def wake(self) -> None:
        for session in self.sessions.values():
            session.woken.set()

    def forget_sessions(self) -> None:
        gone, self.sessions = self.sessions, {}
        for session in gone.values():
            session.woken.set()

    def cut_held(self) -> None:
        """Cut the sockets of polls that are held now, as often as the fault allows."""
        for session in self.sessions.values():
            if session.holding and session.transport and self.org.faults.take("drop-connections", "held"):
                session.transport.abort()

    def deafen(self) -> None:
        for session in self.sessions.values():
            session.deaf = True

    def alive(self) -> list[Session]:
        """The sessions that have not run out; forgets the others."""
        limit = self.org.clock() - self.org.settings.session_timeout
        self.sessions = {k: s for k, s in self.sessions.items() if s.holding or s.seen >= limit}
        return list(self.sessions.values())

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """`POST /cometd/NN.0`: an array of Bayeux messages (or one) in, an array out."""
        self.org.counts["cometd requests"] += 1
        if (request.content_length or 0) > MAX_BODY or len(body := await request.content.read(MAX_BODY + 1)) > MAX_BODY:
            return web.json_response([bayeux.error("413::Maximum Request Size Exceeded")], status=413)
        while more := await request.content.read(MAX_BODY):
            body += more
            if len(body) > MAX_BODY:
                return web.json_response([bayeux.error("413::Maximum Request Size Exceeded")], status=413)
        if wrong := bayeux.wrong_version(request.match_info.get("version", "")):
            return web.json_response([bayeux.error(wrong)], status=400)
        try:
            messages = orjson.loads(body)
        except orjson.JSONDecodeError:
            return web.json_response([bayeux.error("400::Invalid JSON")], status=400)
        messages = [messages] if isinstance(messages, dict) else messages
        if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
            return web.json_response([bayeux.error("400::Expected an array of messages")], status=400)
        parts: list[bytes] = []
        cookie = None
        carried = 0
        for message in messages:
            if message.get("channel") == "/meta/handshake":
                reply, cookie = self._handshake(request, message)
                parts.append(orjson.dumps(reply))
                continue
            refusal, session = self._admit(request, message)
            if refusal or session is None:
                parts.append(orjson.dumps(refusal))
            elif message.get("channel") == "/meta/connect":
                events, reply = await self._connect(request, session, message, may_hold=len(messages) == 1)
                parts += [*events, orjson.dumps(reply)]
                carried += len(events)
            else:
                parts.append(orjson.dumps(self._other(session, message)))
        return await self._answer(request, b"[" + b",".join(parts) + b"]", cookie, carried)

    async def _answer(self, request: web.Request, body: bytes, cookie: str | None, carried: int) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json;charset=UTF-8", "Cache-Control": "no-cache, no-store"})
        response.content_length = len(body)
        if cookie:
            response.set_cookie(COOKIE, cookie, path="/cometd/", httponly=True)
        cut = carried > 0 and self.org.faults.take("drop-connections", "reply")
        with contextlib.suppress(ConnectionResetError):  # the socket is gone, and what the reply carried with it
            await response.prepare(request)
            if cut or serve.STALLED in request:
                return await serve.stall(request, response, body, 0 if cut else request[serve.STALLED])
            await response.write(body)
            await response.write_eof()
        return response

    def _handshake(self, request: web.Request, message: Message) -> tuple[Message, str | None]:
        reply: Message = {"channel": "/meta/handshake", "successful": False, **bayeux.same_id(message)}
        denied = {"error": "403::Handshake denied", "advice": {"reconnect": "none"}}
        extra = {"replay": True, "payload.format": True}
        if "Authorization" not in request.headers:
            return reply | {"error": "401::Request requires authentication", "advice": {"reconnect": "none"}}, None
        if (token := self.oauth.token_of(request)) is None:
            return reply | denied | {"ext": {"sfdc": {"failureReason": "401::Authentication invalid"}}}, None
        if self.org.faults.take("handshake-denied"):
            return reply | denied | {"ext": {"sfdc": {"failureReason": bayeux.BUSY}, **extra}}, None
        kinds = message.get("supportedConnectionTypes")
        if not isinstance(kinds, list) or "long-polling" not in kinds:
            kind = kinds[0] if isinstance(kinds, list) and kinds else kinds
            return reply | {"error": f"400::Invalid connection type {kind}", "advice": {"reconnect": "none"}}, None
        client_id = "".join(secrets.choice(_LETTERS) for _ in range(27 + secrets.randbelow(3)))
        cookie = request.cookies.get(COOKIE) or secrets.token_hex(16)
        self.alive()
        self.sessions[client_id] = Session(client_id, cookie, token.user_id, self.org.clock())
        self.org.counts["handshakes"] += 1
        made = {"successful": True, "clientId": client_id, "version": "1.0", "minimumVersion": "1.0"}
        return reply | made | {"supportedConnectionTypes": ["long-polling"], "ext": extra}, cookie

    def _admit(self, request: web.Request, message: Message) -> tuple[Message | None, Session | None]:
        """The refusal of a message, or the session it belongs to."""
        client_id = message.get("clientId")
        reply = bayeux.reply(message)
        if "Authorization" not in request.headers:
            return reply | {"error": "401::Request requires authentication", "advice": {"reconnect": "none", "interval": 0}}, None
        if not isinstance(client_id, str) or not client_id:
            return reply | {"error": "403::Client has not completed handshake", "advice": {"reconnect": "handshake", "interval": 0}}, None
        if message.get("channel") == "/meta/connect" and (armed := self.org.faults.take("unknown-client")):
            self.sessions.pop(client_id, None)
            return bayeux.unknown(message, armed.variant), None
        self.alive()
        session = self.sessions.get(client_id)
        if session is None:
            return bayeux.unknown(message, "handshake"), None
        if request.cookies.get(COOKIE) != session.cookie:
            return reply | {"error": f"400::Client {client_id} has established a session, but no {COOKIE} cookie present"}, None
        if (token := self.oauth.token_of(request)) is None:
            return reply | bayeux.unauthenticated(), None
        if token.user_id != session.user_id:
            return reply | {"error": "400::Authenticated user id does not match the session's user id"}, None
        session.seen = self.org.clock()
        return None, session

    def _other(self, session: Session, message: Message) -> Message:
        reply = bayeux.reply(message) | {"successful": True}
        match message.get("channel"):
            case "/meta/subscribe":
                error = self._subscribe(session, message)
                return reply | ({"successful": False, "error": error} if error else {})
            case "/meta/unsubscribe":
                session.channels.pop(str(message.get("subscription")), None)
                return reply
            case "/meta/disconnect":
                self.sessions.pop(session.client_id, None)
                session.woken.set()
                return reply
        return reply | {"successful": False, "error": "403::Cannot create channel"}

    def _subscribe(self, session: Session, message: Message) -> str | None:
        """Place the cursor; the error text where that is refused."""
        channel = message.get("subscription")
        if not isinstance(channel, str) or not channel:
            return "400::Channel name not specified"
        if not channel.startswith("/"):
            return "400::Channel subscriptions must start with a leading '/'"
        if refusal := self.delivery.refusal(channel, session.user_id):
            return refusal
        if self.org.limits.spent(EVENTS):
            return OVER
        replay = (message.get("ext") or {}).get("replay") if isinstance(message.get("ext"), dict) else None
        wanted: Any = -1
        if isinstance(replay, dict) and replay:
            if channel not in replay:
                return bayeux.wrong_replay_map(channel, replay)
            wanted = replay[channel]
        number = int(wanted) if re.fullmatch(r"-?\d{1,18}", str(wanted)) and not isinstance(wanted, bool | float) else None
        cursor = None
        if number == -1:
            cursor = self.org.bus.end
        elif number == -2:
            cursor = self.org.bus.start
        elif number is not None and number >= 0 and not self.org.faults.take("invalid-replay"):
            cursor = self.org.bus.position_of(number)
        if cursor is None or self.org.faults.take("refuse-resubscribe"):
            return bayeux.invalid_replay(wanted)
        session.channels[channel] = Subscription(cursor, self.delivery.entities(channel, session.user_id))
        session.woken.set()
        return None

    async def _connect(self, request: web.Request, session: Session, message: Message, *, may_hold: bool) -> tuple[list[bytes], Message]:
        reply = bayeux.reply(message) | {"successful": True}
        if message.get("connectionType") not in (None, "long-polling"):
            return [], reply | {"successful": False, "error": f"400::Invalid connection type {message['connectionType']}"}
        session.connects += 1
        mine = session.connects
        session.woken.set()  # an older poll of this session ends without taking anything
        if mine == 1:
            advice = {"interval": 0, "timeout": int(self.org.settings.hold * 1000), "reconnect": "retry"}
            return [], reply | {"advice": advice}
        silent = await self._held(request, session, mine) if may_hold else bool(self.org.faults.peek("silent", "all"))
        if session.connects != mine or session.client_id not in self.sessions:
            return [], bayeux.unknown(message, "handshake")
        if self.oauth.token_of(request) is None:
            return [], reply | bayeux.unauthenticated() | {"successful": False}
        if self.org.faults.take("limit-403") or self.org.limits.spent(EVENTS):
            return [], reply | {"successful": False, "error": OVER, "advice": {"reconnect": "none", "interval": 0}}
        session.seen = self.org.clock()
        if silent:
            return [], reply
        events = self.delivery.take(session.channels, session.user_id)
        if events and self.org.faults.take("reorder"):
            events.reverse()
        if events and self.org.faults.take("duplicate"):
            events = [e for event in events for e in (event, event)]
        return events, reply

    async def _held(self, request: web.Request, session: Session, mine: int) -> bool:
        """Wait for something to deliver, at most the hold time. True where this poll is to stay silent."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self.org.settings.hold
        session.holding, session.transport = True, request.transport
        try:
            armed = self.org.faults.take("silent", "all")
            silent = session.deaf or armed is not None
            if self.org.faults.take("drop-connections", "held") and request.transport:
                request.transport.abort()
            while (left := end - loop.time()) > 0 and session.connects == mine and session.client_id in self.sessions:
                if self.oauth.token_of(request) is None or self.org.faults.peek("limit-403") or not self.org.limits.left(EVENTS):
                    break
                if not silent and self.delivery.waiting(session.channels):
                    if self.org.settings.linger:
                        await asyncio.sleep(min(self.org.settings.linger, left))
                    break
                session.woken.clear()
                if armed and armed.left is None and self.org.faults.peek("silent", "all") is not armed:
                    silent = session.deaf  # cleared while this poll was held
                    continue
                try:
                    await asyncio.wait_for(session.woken.wait(), left)
                except TimeoutError:
                    break
            return silent
        finally:
            if session.connects == mine:
                session.holding, session.transport = False, None
