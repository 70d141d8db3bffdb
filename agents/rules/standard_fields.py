"""Salesforce's standard fields and their kinds, for maps that are read before anybody can ask the org. Pure data.

Used to type columns, to leave out a field that one of several objects of a route does not have, and to suggest the right name. The org's
describe (`headrace check`) has the last word.
"""

from typing import Literal

from agents.rules.compound import ADDRESS_PARTS

Kind = Literal["text", "number", "boolean", "date", "datetime"]


def _kinds(text: str = "", number: str = "", boolean: str = "", date: str = "", datetime: str = "") -> dict[str, Kind]:
    return {
        **dict.fromkeys(text.split(), "text"),
        **dict.fromkeys(number.split(), "number"),
        **dict.fromkeys(boolean.split(), "boolean"),
        **dict.fromkeys(date.split(), "date"),
        **dict.fromkeys(datetime.split(), "datetime"),
    }


def _address(*stems: str) -> str:
    return " ".join(f"{stem}{part}" for stem in stems for part in ADDRESS_PARTS if part not in ("Latitude", "Longitude"))


SYSTEM = _kinds(
    "Id OwnerId CreatedById LastModifiedById RecordTypeId CurrencyIsoCode",
    boolean="IsDeleted",
    datetime="CreatedDate LastModifiedDate SystemModstamp LastViewedDate LastReferencedDate",
    date="LastActivityDate",
)
_PERSON = "Name Salutation FirstName MiddleName LastName Suffix Title Email Phone MobilePhone Fax Description LeadSource"

FIELDS: dict[str, dict[str, Kind]] = {
    "Account": SYSTEM
    | _kinds(
        "Name Type ParentId Phone Fax AccountNumber Website PhotoUrl Sic Industry Ownership TickerSymbol Description Rating Site "
        "AccountSource Jigsaw CleanStatus DunsNumber Tradestyle NaicsCode NaicsDesc YearStarted SicDesc MasterRecordId PersonContactId "
        "PersonEmail Salutation FirstName MiddleName LastName Suffix " + _address("Billing", "Shipping"),
        "AnnualRevenue NumberOfEmployees BillingLatitude BillingLongitude ShippingLatitude ShippingLongitude",
        "IsPersonAccount",
    ),
    "Contact": SYSTEM
    | _kinds(
        f"{_PERSON} AccountId ReportsToId HomePhone OtherPhone AssistantName AssistantPhone Department Jigsaw CleanStatus IndividualId "
        "EmailBouncedReason MasterRecordId PhotoUrl " + _address("Mailing", "Other"),
        "MailingLatitude MailingLongitude OtherLatitude OtherLongitude",
        "HasOptedOutOfEmail HasOptedOutOfFax DoNotCall IsEmailBounced",
        "Birthdate",
        "EmailBouncedDate LastCURequestDate LastCUUpdateDate",
    ),
    "Lead": SYSTEM
    | _kinds(
        f"{_PERSON} Company Status Industry Rating Website ConvertedAccountId ConvertedContactId ConvertedOpportunityId IndividualId "
        "Jigsaw CleanStatus CompanyDunsNumber DandbCompanyId EmailBouncedReason MasterRecordId PhotoUrl " + _address(""),
        "AnnualRevenue NumberOfEmployees Latitude Longitude",
        "IsConverted IsUnreadByOwner HasOptedOutOfEmail HasOptedOutOfFax DoNotCall",
        "ConvertedDate",
        "EmailBouncedDate",
    ),
    "Opportunity": SYSTEM
    | _kinds(
        "Name AccountId Description StageName NextStep Type LeadSource ForecastCategory ForecastCategoryName CampaignId Pricebook2Id "
        "ContactId FiscalYear Fiscal",
        "Amount Probability ExpectedRevenue TotalOpportunityQuantity FiscalQuarter",
        "IsClosed IsWon HasOpportunityLineItem IsPrivate",
        "CloseDate",
    ),
    "Task": SYSTEM
    | _kinds(
        "WhoId WhatId Subject Status Priority Description AccountId CallType CallDisposition CallObject RecurrenceActivityId "
        "TaskSubtype Type",
        "CallDurationInSeconds",
        "IsClosed IsHighPriority IsArchived IsReminderSet IsRecurrence",
        "ActivityDate",
        "ReminderDateTime CompletedDateTime",
    ),
    "Case": SYSTEM
    | _kinds(
        "CaseNumber ContactId AccountId AssetId ParentId SuppliedName SuppliedEmail SuppliedPhone SuppliedCompany Type Status Reason "
        "Origin Subject Priority Description Comments ContactPhone ContactMobile ContactEmail ContactFax",
        boolean="IsClosed IsEscalated",
        datetime="ClosedDate",
    ),
    "User": SYSTEM
    | _kinds(
        "Name Username FirstName MiddleName LastName Suffix Email Phone MobilePhone Title Department Division CompanyName EmployeeNumber "
        "ManagerId ProfileId UserRoleId Alias CommunityNickname TimeZoneSidKey LocaleSidKey LanguageLocaleKey " + _address(""),
        "Latitude Longitude",
        "IsActive",
        datetime="LastLoginDate",
    ),
}

RELATED: dict[str, str] = {
    "Account": "Account",
    "Contact": "Contact",
    "Owner": "User",
    "CreatedBy": "User",
    "LastModifiedBy": "User",
    "Manager": "User",
    "ReportsTo": "Contact",
    "ConvertedAccount": "Account",
    "ConvertedContact": "Contact",
    "ConvertedOpportunity": "Opportunity",
}
"""What a relationship of the same name leads to."""


def kind_of(sobject: str, path: str) -> Kind | None:
    """Kind of a standard field, also through relationships; None for custom ones and objects not listed."""
    *steps, name = path.split(".")
    for step in steps:
        sobject = RELATED.get(step, "")
    return FIELDS.get(sobject, {}).get(name)


def may_have(sobject: str, path: str) -> bool | None:
    """Whether an object has a field: None when that cannot be known here (custom fields and objects)."""
    root, dot, _ = path.partition(".")
    if sobject not in FIELDS or root.endswith(("__c", "__r", "__s", "__pc", "__pr")):
        return None
    if dot:
        return f"{root}Id" in FIELDS[sobject] or None if root in RELATED or f"{root}Id" in FIELDS[sobject] else None
    return root in FIELDS[sobject]
