"""The faults of the sandbox org by name: what breaks on the wire, and what Salesforce itself does to data, limits and rights. Data only."""

from deploy.sandbox.faults import Kind

_PARTS = ("cometd", "rest", "token", "bulk")
KINDS = {
    "drop-connections": Kind("cut the socket of a poll", ("held", "reply", "request")),
    "unknown-client": Kind("forget the session of the next connect", ("handshake", "none")),
    "server-restart": Kind("drop every session and refuse connections for some seconds", instant=True),
    "refuse-resubscribe": Kind("refuse the next subscribe, whatever it asks for"),
    "invalid-replay": Kind("refuse the next subscribe from a stored position"),
    "silent": Kind("stay connected and deliver nothing: everybody, or the sessions of now for ever", ("all", "session"), times=None),
    "duplicate": Kind("deliver each event of a reply twice"),
    "reorder": Kind("turn the events of a reply round"),
    "expire-token": Kind("end every access token", instant=True),
    "revoke": Kind("end every access token and give no new ones until cleared", times=None),
    "html-503": Kind("answer with an HTML page and 503", ("all", *_PARTS)),
    "html-200": Kind("answer with an HTML page and 200", (*_PARTS, "all")),
    "empty-body": Kind("answer 200 with nothing", (*_PARTS, "all")),
    "slow": Kind("answer late by some seconds", ("all", *_PARTS), seconds=2.0),
    "limit-403": Kind("say on connect that the daily events are used up"),
    "handshake-denied": Kind("deny the next handshake as if too many were connected"),
    "rest-limit": Kind("say on REST that the daily requests are used up"),
    "lock-row": Kind("refuse a write as if the row were locked; in a collection one record of it", ("500", "400")),
}
"""On the wire, and such as a client can outlive by trying again."""

LOSSES = {
    "token-endpoint-down": Kind(
        "answer no login: an HTML page, a cut socket, or the login rate limit", ("html", "cut", "rate"), times=None
    ),
    "daily-limit": Kind("use up a daily limit until cleared", ("api", "events", "bulk-jobs", "bulk-storage"), times=None),
    "concurrent-limit": Kind("say on REST that too many long calls run at once"),
    "rest-error": Kind(
        "answer a call of REST with an error of the server",
        ("SERVER_UNAVAILABLE", "QUERY_TIMEOUT", "UNKNOWN_EXCEPTION", "REQUEST_RUNNING_TOO_LONG"),
    ),
    "stalled": Kind("send half of a reply, then nothing for some seconds, then cut it", ("all", *_PARTS), seconds=60.0),
    "page-size": Kind("give pages of changing size, of REST and Bulk", times=None),
    "clock-skew": Kind("show a clock that is wrong by some seconds", ("ahead", "behind"), times=None, seconds=120.0, most=30 * 86_400),
    "gap": Kind(
        "tell the changes of a transaction as gap events: all of them, or those of one kind",
        ("all", "create", "update", "delete", "undelete"),
    ),
    "gap-wildcard": Kind("tell the changes of a transaction as gap events for every record of the object"),
    "wildcard": Kind("tell the changes of a transaction as a change of every record of the object"),
    "overflow": Kind("tell a transaction as GAP_OVERFLOW; setting overflow_after does so after that many changes"),
    "old-form": Kind(
        "write events as of years ago: dates without milliseconds, or no changedFields", ("dates", "no-changed-fields"), times=None
    ),
    "drop-events": Kind("lose events in the bus for ever, or in replies only, at a rate (0.1)", ("bus", "reply"), times=None, rate=0.1),
    "expired-position": Kind("end the retention of everything published so far, or of its older half", ("all", "half"), instant=True),
    "org-migration": Kind(
        "go on as another org: other org id, logins and sessions gone, positions begun again; or only the positions go back",
        ("org", "ids"),
        instant=True,
    ),
    "trigger": Kind(
        "let a trigger change the same record again, or another one, in the transaction of a REST write", ("same", "other"), times=None
    ),
    "merged": Kind("change very many contacts alike in one transaction: as many ids in one event as --times says", times=300, instant=True),
    "bulk-failed": Kind("let a Bulk job fail"),
    "bulk-stuck": Kind("keep Bulk jobs InProgress", times=None),
    "bulk-locator": Kind("refuse the next locator of a Bulk result, as if the result had expired"),
    "bulk-unfit": Kind("make no Bulk jobs, as for an object that Bulk does not know", times=None),
    "cut-results": Kind("cut the result of a Bulk job in the middle of a row"),
}
"""What the platform does: ways in which data goes missing, limits are met, or rights are not there."""
