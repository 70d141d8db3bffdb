"""The standard objects and fields of the sandbox org, as a table. Data only; `schema.py` reads it."""

# One field a line: name, type[:length or referenced objects], flags. `address` and `person-name` stand for their components.
SYSTEM = """
Id id ro
IsDeleted boolean ro hidden
CreatedDate datetime ro
CreatedById reference:User ro
LastModifiedDate datetime ro
LastModifiedById reference:User ro
SystemModstamp datetime ro hidden
"""
OBJECTS = {
    "Account": """001
Name string:255 required name
Type picklist
ParentId reference:Account
Billing address
Shipping address
Phone phone:40
Fax phone:40
AccountNumber string:40
Website url:255
Sic string:20
Industry picklist
AnnualRevenue currency
NumberOfEmployees int
Ownership picklist
TickerSymbol string:20
Description textarea:32000
Rating picklist
Site string:80
AccountSource picklist
OwnerId reference:User owner""",
    "Contact": """003
AccountId reference:Account
Name person-name
Mailing address
Other address
Phone phone:40
Fax phone:40
MobilePhone phone:40
HomePhone phone:40
OtherPhone phone:40
AssistantPhone phone:40
AssistantName string:40
ReportsToId reference:Contact
Email email:80
Title string:128
Department string:80
LeadSource picklist
Birthdate date
Description textarea:32000
HasOptedOutOfEmail boolean
DoNotCall boolean
EmailBouncedReason string:255
EmailBouncedDate datetime
CleanStatus picklist default=Pending
OwnerId reference:User owner""",
    "Lead": """00Q
Name person-name
Title string:128
Company string:255 required
. address
Phone phone:40
MobilePhone phone:40
Fax phone:40
Email email:80
Website url:255
Description textarea:32000
LeadSource picklist
Status picklist default=Open
Industry picklist
Rating picklist
AnnualRevenue currency
NumberOfEmployees int
HasOptedOutOfEmail boolean
DoNotCall boolean
IsConverted boolean ro
ConvertedDate date ro
ConvertedAccountId reference:Account ro
ConvertedContactId reference:Contact ro
ConvertedOpportunityId reference:Opportunity ro
IsUnreadByOwner boolean
OwnerId reference:User owner""",
    "Opportunity": """006
AccountId reference:Account
Name string:120 required name
Description textarea:32000
StageName picklist required
Amount currency
Probability percent
ExpectedRevenue currency ro
TotalOpportunityQuantity double
CloseDate date required
Type picklist
NextStep string:255
LeadSource picklist
IsClosed boolean ro
IsWon boolean ro
ForecastCategory picklist ro
ForecastCategoryName picklist
ContactId reference:Contact
OwnerId reference:User owner""",
    "Task": """00T
WhoId reference:Contact|Lead
WhatId reference:Account|Opportunity|Case
Subject string:255 name
ActivityDate date
Status picklist default=Not_Started
Priority picklist default=Normal
IsHighPriority boolean ro
Description textarea:32000
AccountId reference:Account ro
IsClosed boolean ro
CallType picklist
CallDurationInSeconds int
OwnerId reference:User owner""",
    "Case": """500
CaseNumber string:30 ro name auto
ContactId reference:Contact
AccountId reference:Account
ParentId reference:Case
SuppliedName string:80
SuppliedEmail email:80
SuppliedPhone string:40
SuppliedCompany string:80
Type picklist
Status picklist default=New
Reason picklist
Origin picklist
Subject string:255
Priority picklist default=Medium
Description textarea:32000
IsClosed boolean ro
ClosedDate datetime ro
IsEscalated boolean
OwnerId reference:User owner""",
    "User": """005
Username string:80 required
Name person-name
CompanyName string:80
Division string:80
Department string:80
Title string:80
. address
Email email:128 required
Phone phone:40
MobilePhone phone:40
Alias string:8 required
IsActive boolean default=true
TimeZoneSidKey picklist default=America/New_York
UserType picklist ro
EmployeeNumber string:20
ManagerId reference:User""",
}
ADDRESS = """Street textarea:255
City string:40
State string:80
PostalCode string:20
Country string:80
Latitude double
Longitude double
GeocodeAccuracy picklist""".splitlines()

PERSON_ACCOUNT = """IsPersonAccount boolean ro
PersonContactId reference:Contact ro
PersonEmail email:80
PersonMobilePhone phone:40
PersonHomePhone phone:40
PersonTitle string:80
PersonDepartment string:80
PersonLeadSource picklist
PersonBirthdate date
PersonDoNotCall boolean
PersonMailing address"""
