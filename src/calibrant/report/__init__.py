"""What a person looks at: a ranking in the terminal, as Markdown or JSON, and one self-contained HTML page. No torch here."""

from calibrant.report.reporting import Report, report

__all__ = ["Report", "report"]
