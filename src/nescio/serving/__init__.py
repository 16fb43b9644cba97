"""A detector behind HTTP: verdicts, a page, metrics, and whether the input has changed."""

from nescio.serving.limits import Limits
from nescio.serving.service import create_app, serve

__all__ = ["Limits", "create_app", "serve"]
