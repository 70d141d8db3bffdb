"""How we speak to Kafka, said once for all that read and write: options of a client (so that security and time-outs are equal everywhere),
the partition of a key, our class of its errors.
"""

import logging
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.conn import collect_hosts, create_conn
from aiokafka.errors import (
    AuthenticationFailedError,
    IllegalSaslStateError,
    KafkaConnectionError,
    KafkaError,
    ProducerFenced,
    SaslAuthenticationFailed,
    UnknownTopicOrPartitionError,
    UnsupportedSaslMechanismError,
)
from pydantic import SecretStr

from models.errors import FatalError, HeadraceError, SettingsError, TemporaryError
from models.settings import Settings

ASK_SECONDS = 5.0


def client_options(settings: Settings) -> dict[str, Any]:
    """Options every aiokafka client takes: addresses and security. Raises SettingsError for a file that cannot be used."""
    return {"bootstrap_servers": settings.kafka.split(","), **_security(settings)}


@asynccontextmanager
async def admin(settings: Settings) -> AsyncIterator[AIOKafkaAdminClient]:
    """A started admin client; raises what aiokafka does."""
    client = AIOKafkaAdminClient(**client_options(settings))
    try:
        await client.start()
        yield client
    finally:
        await client.close()


async def unreachable(settings: Settings, error: Exception) -> HeadraceError:
    """Why no broker could be reached, asked once more of each: aiokafka says it to its log only.

    FatalError where one is there and refuses us (name and password, certificates), else TemporaryError. Never holds a secret.
    """
    for host, port, _ in collect_hosts(settings.kafka.split(",")):
        try:
            connection = await create_conn(host, port, request_timeout_ms=int(ASK_SECONDS * 1000), **_security(settings))
            connection.close()
        except (AuthenticationFailedError, SaslAuthenticationFailed):
            return FatalError(
                f"Kafka at {host}:{port} refuses the user {settings.kafka_username!r}: compare KAFKA_USERNAME, KAFKA_PASSWORD and "
                f"KAFKA_SASL_MECHANISM ({settings.kafka_sasl_mechanism}) with the broker's"
            )
        except (UnsupportedSaslMechanismError, IllegalSaslStateError):
            return FatalError(
                f"Kafka at {host}:{port} does not take {settings.kafka_sasl_mechanism} ({settings.kafka_security}): set "
                "KAFKA_SASL_MECHANISM and KAFKA_SECURITY_PROTOCOL to what this listener has"
            )
        except ssl.SSLCertVerificationError as refused:
            return FatalError(
                f"the certificate of Kafka at {host}:{port} is not to be trusted ({refused.verify_message}): set KAFKA_CA_FILE to its "
                "authority's PEM file, and address the broker by a name in its certificate"
            )
        except ssl.SSLError as refused:
            return FatalError(
                f"Kafka at {host}:{port} does not agree to TLS ({refused.reason}): compare KAFKA_SECURITY_PROTOCOL with its listener's, "
                "and KAFKA_CERTIFICATE_FILE with what it asks for"
            )
        except (KafkaError, OSError):
            continue
    hint = "" if settings.kafka_security == "PLAINTEXT" else f"; see that its listener speaks {settings.kafka_security}"
    return TemporaryError(
        f"Kafka at {settings.kafka} cannot be reached ({type(error).__name__}): start it, or set KAFKA_BOOTSTRAP_SERVERS{hint}"
    )


@lru_cache(maxsize=1 << 16)  # in Python the hash takes longer than the rest of sending a record, and keys come again
def partition_of(key: bytes, partitions: int) -> int:
    """The partition that every other Kafka client gives a key (murmur2, the default partitioner)."""
    length = len(key)
    words = length >> 2
    h = 0x9747B28C ^ length
    for k in struct.unpack_from(f"<{words}I", key):
        k = k * 0x5BD1E995 & 0xFFFFFFFF
        k = (k ^ k >> 24) * 0x5BD1E995 & 0xFFFFFFFF
        h = (h * 0x5BD1E995 & 0xFFFFFFFF) ^ k
    if tail := key[words << 2 :]:
        h = (h ^ int.from_bytes(tail, "little")) * 0x5BD1E995 & 0xFFFFFFFF
    h = (h ^ h >> 13) * 0x5BD1E995 & 0xFFFFFFFF
    return ((h ^ h >> 15) & 0x7FFFFFFF) % partitions


def our_error(error: Exception, what: str) -> Exception:
    """An error of aiokafka by its class of ours, which says what to do next. `what` was being done."""
    if isinstance(error, ProducerFenced):
        return FatalError(f"{what}: another process took over (fenced); this one ends")
    if isinstance(error, UnknownTopicOrPartitionError):
        return FatalError(f"{what}: a topic does not exist: {error}; `headrace check` names it")
    if isinstance(error, KafkaConnectionError | TimeoutError) or getattr(error, "retriable", False):
        return TemporaryError(f"{what}: Kafka is not to be reached ({type(error).__name__})")
    return FatalError(f"{what}: {type(error).__name__}: {error}")


def _security(settings: Settings) -> dict[str, Any]:
    options: dict[str, Any] = {"security_protocol": settings.kafka_security}
    if settings.kafka_security.endswith("SSL"):
        options["ssl_context"] = _tls(settings.kafka_ca, settings.kafka_certificate, settings.kafka_key, settings.kafka_key_password)
    if settings.kafka_security.startswith("SASL"):
        logging.getLogger("aiokafka.conn").addFilter(_no_requests)
        options["sasl_mechanism"] = settings.kafka_sasl_mechanism
        options["sasl_plain_username"] = settings.kafka_username
        options["sasl_plain_password"] = settings.kafka_password.get_secret_value() if settings.kafka_password else None
    return options


def _no_requests(record: logging.LogRecord) -> bool:
    """At the level debug aiokafka logs every request, the one with the password among them."""
    return record.levelno > logging.DEBUG


@lru_cache(maxsize=4)
def _tls(authority: Path | None, certificate: Path | None, key: Path | None, password: SecretStr | None) -> ssl.SSLContext:
    """Checks the broker's certificate and its name, always."""
    try:
        context = ssl.create_default_context(cafile=authority)
    except OSError as error:  # ssl.SSLError is one
        raise SettingsError(f"KAFKA_CA_FILE {authority} cannot be used ({error.strerror or error}): it must be a PEM file") from None
    if certificate is not None:
        try:
            # Without a password OpenSSL would ask the terminal for one.
            context.load_cert_chain(certificate, key, (password or SecretStr("")).get_secret_value)
        except (OSError, ValueError) as error:
            raise SettingsError(
                f"KAFKA_CERTIFICATE_FILE {certificate} and KAFKA_KEY_FILE {key} cannot be used ({type(error).__name__}): both must be PEM "
                "files that belong together, and KAFKA_KEY_PASSWORD that of the key"
            ) from None
    return context
