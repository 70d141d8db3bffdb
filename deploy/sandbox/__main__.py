"""`python -m deploy.sandbox`: the sandbox commands without the front door."""

from deploy.sandbox.commands import app

app(prog_name="sandbox")
