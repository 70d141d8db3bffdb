"""What topics are made with."""

from models.settings import Settings
from streams.topics import Topics, _configs
from tests.support.flows import CONTACTS, flow


def test_the_time_of_a_record_is_the_brokers_in_every_topic_so_that_no_process_clock_decides_what_is_refused_or_deleted() -> None:
    topics = Topics("t").all(flow(contacts=CONTACTS), Settings(installation="t"))
    assert topics
    assert {_configs(topic)["message.timestamp.type"] for topic in topics} == {"LogAppendTime"}
