"""The report as one HTML file: nothing is fetched, and whatever a data set or a model is called is shown as text. No torch here."""

from calibrant.report.page.contents import Contents
from calibrant.report.page.excerpt import fragment
from calibrant.report.page.frame import page

__all__ = ["Contents", "fragment", "page"]
