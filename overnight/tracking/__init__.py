"""Tracking in MLflow: its client, the upload of event logs, and the backlog of what is not uploaded yet."""
