"""Canonical entities: what the built-in maps make of Salesforce's objects, in the same words whatever the source.

Their fields give tables their columns and quality its rules; no record is built as one of these on its way (that would cost ten times
the mapping). Further fields pass through.
"""

from datetime import date, datetime

from pydantic import BaseModel, ConfigDict


class Entity(BaseModel):
    """`externalId` is the source's own id."""

    model_config = ConfigDict(extra="allow")

    externalId: str  # noqa: N815 - the words of the canonical model are those of its readers (JSON, SQL)


class Person(Entity):
    """A Contact or a Lead."""

    email: str | None = None
    firstName: str | None = None  # noqa: N815
    lastName: str | None = None  # noqa: N815
    title: str | None = None
    phone: str | None = None
    accountExternalId: str | None = None  # noqa: N815
    company: str | None = None
    status: str | None = None


class Account(Entity):
    """A company."""

    name: str | None = None
    domain: str | None = None
    industry: str | None = None
    employeeCount: int | None = None  # noqa: N815
    annualRevenue: float | None = None  # noqa: N815


class Opportunity(Entity):
    """A deal."""

    name: str | None = None
    stage: str | None = None
    closeDate: date | None = None  # noqa: N815
    accountExternalId: str | None = None  # noqa: N815
    amount: float | None = None


class Task(Entity):
    """Something to do, or done."""

    subject: str | None = None
    status: str | None = None
    dueDate: date | None = None  # noqa: N815
    personExternalId: str | None = None  # noqa: N815
    relatedExternalId: str | None = None  # noqa: N815
    ownerExternalId: str | None = None  # noqa: N815


class Case(Entity):
    """A request of a customer."""

    number: str | None = None
    subject: str | None = None
    status: str | None = None
    priority: str | None = None
    accountExternalId: str | None = None  # noqa: N815
    personExternalId: str | None = None  # noqa: N815
    closedAt: datetime | None = None  # noqa: N815
