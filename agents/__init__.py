"""How events are acted on. May import streams and models, never deploy."""
