"""Faust made safe and fast: transport, assignor, recovery, store. Knows chunks, offsets and bytes; nothing of Salesforce or targets."""
