"""The schema as REST tells it: the list of objects and the describe of one."""

from typing import Any

from deploy.sandbox.salesforce.schema import Field, Schema, SObject

_SOAP = {
    "id": "tns:ID",
    "reference": "tns:ID",
    "boolean": "xsd:boolean",
    "int": "xsd:int",
    "double": "xsd:double",
    "currency": "xsd:double",
}
_SOAP |= {"percent": "xsd:double", "date": "xsd:date", "datetime": "xsd:dateTime", "address": "urn:address"}


def _object(sobject: SObject, api: str) -> dict[str, Any]:
    base = f"{api}/sobjects/{sobject.name}"
    label = sobject.name.removesuffix("__c").replace("_", " ")
    return {
        "name": sobject.name,
        "label": label,
        "labelPlural": f"{label}s",
        "keyPrefix": sobject.prefix,
        "custom": sobject.custom,
        "customSetting": False,
        "createable": True,
        "updateable": not sobject.event,
        "deletable": sobject.name != "User" and not sobject.event,
        "undeletable": sobject.name != "User" and not sobject.event,
        "queryable": not sobject.event,
        "retrieveable": not sobject.event,
        "replicateable": not sobject.event,
        "searchable": not sobject.event,
        "layoutable": not sobject.event,
        "triggerable": True,
        "mergeable": sobject.name in ("Account", "Contact", "Lead", "Case"),
        "feedEnabled": True,
        "activateable": False,
        "deprecatedAndHidden": False,
        "urls": {"sobject": base, "describe": f"{base}/describe", "rowTemplate": f"{base}/{{ID}}"},
    }


def objects(schema: Schema, api: str) -> dict[str, Any]:
    """`GET /sobjects`."""
    return {"encoding": "UTF-8", "maxBatchSize": 200, "sobjects": [_object(o, api) for o in schema.objects.values()]}


def one(schema: Schema, sobject: SObject, api: str) -> dict[str, Any]:
    """`GET /sobjects/X/describe`."""
    children = [
        {"childSObject": o.name, "field": f.name, "relationshipName": None, "cascadeDelete": False, "deprecatedAndHidden": False}
        for o in schema.objects.values()
        for f in o.fields.values()
        if sobject.name in f.reference
    ]
    fields = [_field(f) for f in sobject.fields.values()]
    return _object(sobject, api) | {"fields": fields, "childRelationships": children, "recordTypeInfos": []}


def _field(f: Field) -> dict[str, Any]:
    text = f.type in ("string", "textarea", "picklist", "email", "phone", "url", "multipicklist")
    defaulted = f.type == "boolean" or f.default is not None or f.name in ("Id", "OwnerId", "CreatedDate", "CreatedById")
    numeric = f.type in ("double", "currency", "percent")
    return {
        "name": f.name,
        "label": f.label,
        "type": f.type,
        "soapType": _SOAP.get(f.type, "xsd:string"),
        "length": f.length,
        "byteLength": f.length * 3 if text else f.length,
        "precision": 18 if numeric else 0,
        "scale": 2 if numeric else 0,
        "digits": 8 if f.type == "int" else 0,
        "nillable": not (f.required or f.type == "boolean" or (defaulted and not f.custom)),
        "defaultedOnCreate": defaulted,
        "defaultValue": f.default,
        "createable": f.writable,
        "updateable": f.writable,
        "calculated": False,
        "calculatedFormula": None,
        "autoNumber": f.name == "CaseNumber",
        "externalId": f.external_id,
        "unique": f.unique,
        "idLookup": f.name == "Id" or f.external_id or f.name == "Email",
        "caseSensitive": False,
        "custom": f.custom,
        "compoundFieldName": f.compound,
        "referenceTo": list(f.reference),
        "relationshipName": f.relationship,
        "polymorphicForeignKey": len(f.reference) > 1,
        "picklistValues": [],
        "restrictedPicklist": False,
        "dependentPicklist": False,
        "controllerName": None,
        "nameField": f.is_name,
        "encrypted": False,
        "deprecatedAndHidden": False,
        "filterable": f.type not in ("address", "textarea"),
        "sortable": f.type not in ("address", "textarea"),
        "groupable": not numeric,
        "htmlFormatted": False,
        "inlineHelpText": None,
        "cascadeDelete": False,
        "permissionable": not f.required,
    }
