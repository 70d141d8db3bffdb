"""`headrace bench`: Headrace beside what it replaces, on the same machine, in the same run, doing the same work."""
