"""Settings of the process: environment variables only, for secrets and addresses. What flows where is in the flow file (models/flow.py)."""

import re
from pathlib import Path
from typing import TypeVar

from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

_T = TypeVar("_T")


class Settings(BaseSettings):
    """Read once by the front door and handed down; nothing reads the environment besides. Each field names its variable."""

    model_config = SettingsConfigDict(env_file=None, extra="ignore", frozen=True, populate_by_name=True)

    kafka: str = Field(default="localhost:9092", alias="KAFKA_BOOTSTRAP_SERVERS", description="host:port, comma-separated")
    kafka_security: str = Field(
        default="PLAINTEXT",
        alias="KAFKA_SECURITY_PROTOCOL",
        pattern="^(PLAINTEXT|SSL|SASL_PLAINTEXT|SASL_SSL)$",
        description="PLAINTEXT, SSL, SASL_PLAINTEXT, SASL_SSL",
    )
    kafka_sasl_mechanism: str = Field(
        default="PLAIN",
        alias="KAFKA_SASL_MECHANISM",
        pattern="^(PLAIN|SCRAM-SHA-256|SCRAM-SHA-512)$",
        description="PLAIN, SCRAM-SHA-256, SCRAM-SHA-512",
    )
    kafka_username: str | None = Field(default=None, alias="KAFKA_USERNAME", description="SASL user", validate_default=True)
    kafka_password: SecretStr | None = Field(default=None, alias="KAFKA_PASSWORD", description="SASL password", validate_default=True)
    kafka_ca: Path | None = Field(default=None, alias="KAFKA_CA_FILE", description="PEM file of the broker's authority; else the system's")
    kafka_certificate: Path | None = Field(
        default=None, alias="KAFKA_CERTIFICATE_FILE", description="PEM file of our own certificate, where the broker asks for one"
    )
    kafka_key: Path | None = Field(default=None, alias="KAFKA_KEY_FILE", description="PEM file of its key, if not in the same file")
    kafka_key_password: SecretStr | None = Field(default=None, alias="KAFKA_KEY_PASSWORD", description="password of the key, if it has one")
    installation: str = Field(
        default="headrace",
        alias="HEADRACE_INSTALLATION",
        pattern=r"^[A-Za-z0-9_-]{1,60}$",
        description="name of this installation: topic prefix, consumer group, part of every transactional.id",
    )
    flow: Path = Field(default=Path("flow.yaml"), alias="HEADRACE_FLOW", description="the flow file")
    partitions: int = Field(default=12, ge=1, le=1000, alias="HEADRACE_PARTITIONS", description="partitions of every topic, fixed for ever")
    replication: int = Field(default=1, ge=1, alias="HEADRACE_REPLICATION", description="replication factor of new topics")
    retention_days: float = Field(
        default=7, gt=0, alias="HEADRACE_RETENTION_DAYS", description="retention of in-topics and writes, in days"
    )
    state: Path = Field(
        default=Path(".headrace/state"), alias="HEADRACE_STATE_DIR", description="folder of the local table stores; one worker each"
    )
    tokens: Path = Field(
        default=Path(".headrace/tokens"), alias="HEADRACE_TOKENS_DIR", description="folder of the kept refresh tokens, encrypted"
    )
    token_keys: SecretStr | None = Field(
        default=None,
        alias="HEADRACE_TOKEN_KEYS",
        description="what encrypts kept refresh tokens: 64 hex characters (openssl rand -hex 32); after commas older keys, only read",
    )
    metrics_host: str = Field(default="127.0.0.1", alias="HEADRACE_METRICS_HOST", description="address of /metrics, /healthz, /readyz")
    metrics_port: int = Field(default=0, ge=0, le=65535, alias="HEADRACE_METRICS_PORT", description="its port; 0 chooses a free one")
    receiver_host: str = Field(default="127.0.0.1", alias="HEADRACE_RECEIVER_HOST", description="address of the webhook receiver")
    receiver_port: int = Field(default=8080, ge=0, le=65535, alias="HEADRACE_RECEIVER_PORT", description="its port")
    drain_seconds: float = Field(
        default=10.0, gt=0, alias="HEADRACE_DRAIN_SECONDS", description="time for chunks in flight at a rebalance or stop"
    )
    session_timeout: float = Field(
        default=30.0, gt=0, alias="HEADRACE_SESSION_TIMEOUT", description="Kafka group session timeout, in seconds"
    )
    log_format: str = Field(default="text", alias="HEADRACE_LOG_FORMAT", pattern="^(text|json)$", description="text or json")

    @field_validator("token_keys")
    @classmethod
    def _keys(cls, keys: SecretStr | None) -> SecretStr | None:
        if keys is not None and not all(re.fullmatch(r"[0-9A-Fa-f]{64}", key) for key in keys.get_secret_value().split(",")):
            raise ValueError("each key must be exactly 64 hex characters, with a comma and no space between them")
        return keys

    @field_validator("kafka_username", "kafka_password")
    @classmethod
    def _needed_by_sasl(cls, value: _T, info: ValidationInfo) -> _T:
        if str(info.data.get("kafka_security")).startswith("SASL") and not value:
            raise ValueError("needed by KAFKA_SECURITY_PROTOCOL=SASL_…")
        return value

    @field_validator("kafka_ca", "kafka_certificate", "kafka_key")
    @classmethod
    def _used_by_tls(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is not None and not str(info.data.get("kafka_security")).endswith("SSL"):
            raise ValueError("given, but KAFKA_SECURITY_PROTOCOL is not SSL or SASL_SSL: it would not be used")
        return value
