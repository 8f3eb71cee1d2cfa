"""The schedule and the front door: Prefect flows and the command line."""
