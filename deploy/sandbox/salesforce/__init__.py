"""A Salesforce org at one's desk: CometD, OAuth, REST and change events, made after the published facts and recorded payloads."""
