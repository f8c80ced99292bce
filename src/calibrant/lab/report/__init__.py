"""What a person looks at: a study's comparison in the terminal, as Markdown, CSV, LaTeX or JSON,
and one self-contained HTML page. No torch here.
"""

from calibrant.lab.report.reporting import FORMATS, Report, check_format, report

__all__ = ["FORMATS", "Report", "check_format", "report"]
