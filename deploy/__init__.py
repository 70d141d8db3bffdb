"""How it all is run: the front door, local services, sandbox, dashboards."""
