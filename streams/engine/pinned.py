"""Start-up check: the Faust and aiokafka installed are the ones that were read when the engine was written."""


def check() -> None:
    """Raises FatalError naming what differs."""
