"""One file = one target; the folder is the registry."""
