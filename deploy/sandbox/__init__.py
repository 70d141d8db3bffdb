"""Stand-ins of the outside world that can be broken at one's desk. Imports nothing of models, streams or agents."""
