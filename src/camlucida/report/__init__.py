"""Results for people: the result folder, the overlays, the page."""

from camlucida.report.figures import MEANING as MEANING
from camlucida.report.figures import row as row
from camlucida.report.figures import sheet as sheet
from camlucida.report.page import entry as entry
from camlucida.report.page import write as write
from camlucida.report.rows import COLUMNS as COLUMNS
from camlucida.report.rows import SCHEMA_VERSION as SCHEMA_VERSION
from camlucida.report.save import PICTURES as PICTURES
from camlucida.report.save import ResultFolder as ResultFolder
from camlucida.report.writing import alone as alone
from camlucida.report.writing import writable as writable
