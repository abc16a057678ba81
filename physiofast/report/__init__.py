"""One self-contained HTML page about a run: no network, no scripts, figures inline.

The files it reads and their schemas are described in `physiofast.runfolder`. A section whose file is missing
or broken says so and names the command that makes it; the other sections are written all the same.
"""

from physiofast.report.density import spectra
from physiofast.report.page import Section, render_report, write_report

__all__ = ["Section", "render_report", "spectra", "write_report"]
