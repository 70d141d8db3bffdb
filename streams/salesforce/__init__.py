"""Salesforce as a source: log in, listen, read by query, keep the position. Nothing here maps, merges or writes to a target."""
