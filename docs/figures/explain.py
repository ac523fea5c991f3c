"""The figure of docs/how-to/explain.md: two classes of a photograph by three methods. `python docs/figures/explain.py`"""

from pathlib import Path

import skimage

import camlucida as cl
from camlucida.images import sources
from camlucida.maps.merge import Views
from camlucida.report import explain, explain_page


def main() -> None:
    net = cl.load("embedded")
    picture = Path(skimage.__file__).parent / "data" / "coffee.png"
    methods = explain.methods("cam,grad-cam,occlusion:patch=24,stride=8")
    one = explain.explain(net, sources.expand([picture]).sources[0], ("top:2",), methods, Views())
    sheet = explain_page.sheet(one, explain.Scale().limits([one]), longest=320)
    sheet.save(Path(__file__).with_name("explain.jpg"), quality=88, optimize=True)


if __name__ == "__main__":
    main()
