"""An Iterable project at one's desk: profiles, field types, buckets, limits and faults, made after the published facts."""
