"""How we speak to Kafka: the one place that turns settings into client options, so that security and time-outs are equal everywhere."""

import ssl
from typing import Any

from models.settings import Settings


def client_options(settings: Settings) -> dict[str, Any]:
    """Options every aiokafka client takes: addresses and security."""
    options: dict[str, Any] = {"bootstrap_servers": settings.kafka.split(","), "security_protocol": settings.kafka_security}
    if "SSL" in settings.kafka_security:
        options["ssl_context"] = ssl.create_default_context(cafile=str(settings.kafka_ca) if settings.kafka_ca else None)
    if "SASL" in settings.kafka_security:
        options["sasl_mechanism"] = settings.kafka_sasl_mechanism
        options["sasl_plain_username"] = settings.kafka_username
        options["sasl_plain_password"] = settings.kafka_password.get_secret_value() if settings.kafka_password else None
    return options
