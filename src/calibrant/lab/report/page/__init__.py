"""The report as one HTML file: nothing is fetched, and whatever a data set or a model is called
is shown as text. No torch here.
"""

from calibrant.lab.report.page.contents import Contents
from calibrant.lab.report.page.whole import fragment, page

__all__ = ["Contents", "fragment", "page"]
