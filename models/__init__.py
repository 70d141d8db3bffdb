"""What things are: words of Headrace. Pydantic and the standard library only; no I/O."""
