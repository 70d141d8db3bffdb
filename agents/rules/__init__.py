"""Pure rules: identity, merge, mapping, quality. Functions of their arguments alone; no Faust, no Kafka, no clients, no clock."""
