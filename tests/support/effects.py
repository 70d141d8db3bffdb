"""Effects as a writer makes them, of bodies as a test says them."""

from typing import Any

from agents.rules.delivery import Held
from agents.rules.writes import NULL, Json, write_json
from agents.targets.base import Effect
from models.write import Body

META = Held("acme/Contact/1", "r", 0, 1, NULL, None, None, None, "live")


def text(body: Body | None) -> Json | None:
    """The body as it travels."""
    return None if body is None else write_json(body)


def effect(object: str, key: str, body: Body | None, *, image: Body | None = None, on_delete: Any = "mark", **more: Any) -> Effect:
    """At turn 1, of no record in particular."""
    return Effect(object=object, key=key, json=text(body), was=text(image), turn=1, on_delete=on_delete, meta=META, **more)
