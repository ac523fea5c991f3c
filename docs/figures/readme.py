"""The README's figure: a photograph, and its best classes with map, box and colour bar. `python docs/figures/readme.py`"""

from pathlib import Path

import skimage

import camlucida as cl
from camlucida import pipeline, report
from camlucida.images import sources


def main() -> None:
    picture = Path(skimage.__file__).parent / "data" / "coffee.png"
    plan = pipeline.plan(cl.load("embedded"), top=2)
    (seen,) = pipeline.look(plan, sources.expand([picture]).sources)
    assert isinstance(seen, pipeline.Seen)
    report.row(seen).save(Path(__file__).with_name("coffee.png"), optimize=True)


if __name__ == "__main__":
    main()
