"""Those who are measured, each a process of its own: `python -m deploy.bench.contenders.<name> SPEC` (spec.py)."""
