"""Where a partition is read on from: at what is committed and nowhere else; whatever else there is to say is a loss."""

import json
from typing import Any

import pytest
from aiokafka import TopicPartition
from structlog.testing import capture_logs

from streams.engine.loss import Loss, letter, start_at
from streams.topics import Topics

PART = TopicPartition("h.in.acme.Contact", 3)
FORGOTTEN, REMOVED, ANEW = "no longer knows how far", "were removed", "made anew or cut off"


@pytest.mark.parametrize(
    ("committed", "mark", "begin", "end", "offset"),
    [
        (None, None, 0, 0, 0),
        (None, None, 0, 900, 0),
        (0, None, 0, 0, 0),
        (5, None, 0, 9, 5),  # a stage without a table
        (5, 5, 0, 9, 5),
        (5, 5, 5, 5, 5),
        (9, 9, 0, 9, 9),
        (2, 7, 0, 9, 2),  # a person set it back
        (7, 2, 0, 9, 7),  # accepted once, nothing read since
    ],
)
def test_a_log_that_holds_what_was_not_read_is_read_on(committed: int | None, mark: int | None, begin: int, end: int, offset: int) -> None:
    assert start_at(PART, committed, mark, begin, end) == offset


@pytest.mark.parametrize(
    ("committed", "mark", "begin", "end", "read", "said"),
    [
        (None, None, 1, 9, None, REMOVED),
        (None, None, 9, 9, None, REMOVED),
        (None, 5, 0, 9, 5, FORGOTTEN),
        (None, 5, 5, 5, 5, FORGOTTEN),
        (None, 0, 0, 0, 0, FORGOTTEN),
        (None, 5, 6, 9, 5, REMOVED),
        (None, 5, 0, 4, 5, ANEW),
        (5, 5, 6, 9, 5, REMOVED),
        (0, None, 1, 1, 0, REMOVED),
        (5, 8, 6, 9, 5, REMOVED),
        (5, 5, 0, 4, 5, ANEW),
        (5, None, 0, 0, 5, ANEW),
        (2, 7, 0, 5, 7, ANEW),
        (7, 9, 0, 5, 9, ANEW),
    ],
)
def test_a_log_that_does_not_is_a_loss_and_never_a_jump(
    committed: int | None, mark: int | None, begin: int, end: int, read: int | None, said: str
) -> None:
    loss = start_at(PART, committed, mark, begin, end)
    assert loss == Loss(PART.topic, PART.partition, read, begin, end)
    assert isinstance(loss, Loss)
    assert said in loss.reason
    assert "headrace accept-loss" in loss.reason
    assert "partition 3" in loss.reason


def told(**facts: Any) -> dict[str, Any]:
    with capture_logs() as lines:
        output = letter(Loss(**{"topic": PART.topic, "partition": 3, "read": 5, "begin": 8, "end": 20} | facts), Topics("h"))
    assert [(line["event"], line["alert"]) for line in lines] == [("log lost records", True)]
    assert output.topic == "h.dead-letters"
    said: dict[str, Any] = json.loads(output.value or b"")
    assert output.key == said["id"].encode()
    return said


def test_the_same_loss_has_the_same_letter_while_retention_goes_on_and_another_loss_another() -> None:
    first = told()
    assert "records 5 to 7 of h.in.acme.Contact partition 3 were removed" in first["reason"]
    assert told(begin=11, end=30)["id"] == first["id"]
    assert told(read=6)["id"] != first["id"]
    assert told(partition=2)["id"] != first["id"]
    assert told(partition=2)["cause"] == first["cause"], "one cause in the list, however many partitions"
