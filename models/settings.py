"""Settings of the process: environment variables only, for secrets and addresses. What flows where is in the flow file (models/flow.py)."""

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Read once by the front door and handed down; nothing reads the environment besides. Each field names its variable."""

    model_config = SettingsConfigDict(env_file=None, extra="ignore", frozen=True, populate_by_name=True)

    kafka: str = Field(default="localhost:9092", alias="KAFKA_BOOTSTRAP_SERVERS", description="host:port, comma-separated")
    kafka_security: str = Field(
        default="PLAINTEXT", alias="KAFKA_SECURITY_PROTOCOL", description="PLAINTEXT, SSL, SASL_PLAINTEXT, SASL_SSL"
    )
    kafka_sasl_mechanism: str = Field(default="PLAIN", alias="KAFKA_SASL_MECHANISM", description="PLAIN, SCRAM-SHA-256, SCRAM-SHA-512")
    kafka_username: str | None = Field(default=None, alias="KAFKA_USERNAME", description="SASL user")
    kafka_password: SecretStr | None = Field(default=None, alias="KAFKA_PASSWORD", description="SASL password")
    kafka_ca: Path | None = Field(default=None, alias="KAFKA_CA_FILE", description="PEM file of the broker's authority")
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
