"""Webhooks come in: signatures (pure) and the receiver."""
