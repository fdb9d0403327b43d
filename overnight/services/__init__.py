"""Prefect's server, its worker and MLflow: a supervisor for each checkout starts, watches and stops them."""

from overnight.services.commands import Row, down, ensure, status, up
from overnight.services.settings import Settings, enter, environment, settings

__all__ = ["Row", "Settings", "down", "ensure", "enter", "environment", "settings", "status", "up"]
