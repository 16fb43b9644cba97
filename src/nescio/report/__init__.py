"""A page that shows what a bench run found."""

from nescio.report.page import write_report

__all__ = ["write_report"]
