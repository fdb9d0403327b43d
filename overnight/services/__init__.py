"""Prefect's server, its worker and MLflow: one supervisor for each checkout starts them, watches them, and stops them."""

from overnight.services.commands import Row, down, ensure, status, up
from overnight.services.settings import Settings, environment, settings

__all__ = ["Row", "Settings", "down", "ensure", "environment", "settings", "status", "up"]
