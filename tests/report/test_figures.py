import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest

from moetool.errors import MoetoolError
from moetool.report.formats import FORMATS, Page
from moetool.report.report import Figure, Panel
from tests.report.sample_report import make_report


def test_svg_is_the_same_for_the_same_report():
    first = FORMATS["svg"].render(make_report(), Page())
    assert first == FORMATS["svg"].render(make_report(), Page())
    assert isinstance(first, bytes)
    assert b"<dc:date>" not in first
    root = ElementTree.fromstring(first)
    text = " ".join(root.itertext())
    assert "Three layers of even load." in text  # for people who cannot see it


def test_png_is_the_same_for_the_same_report():
    first = FORMATS["png"].render(make_report(), Page())
    assert first == FORMATS["png"].render(make_report(), Page())
    assert isinstance(first, bytes)
    assert first.startswith(b"\x89PNG")


@pytest.mark.parametrize("kind", ["bars", "lines", "heatmap"])
@pytest.mark.parametrize("values", [(None, None), (0.0, 0.0), (-1.0, 2.0), (1.0,) * 300])
@pytest.mark.parametrize("title", ["$x_{", "中文\n\x00🙂" * 30])
def test_any_figure_can_be_drawn_without_a_warning(kind, values, title):
    panel = Panel(title, (title or "x",) * len(values), ((title, values),), 0.5)
    figure = Figure("f", title, kind, "", (panel,), title, title)
    assert FORMATS["svg"].render(replace(make_report(), figures=(figure,)), Page())


def test_a_report_without_figures_cannot_be_drawn():
    with pytest.raises(MoetoolError, match="draws no figures"):
        FORMATS["png"].render(replace(make_report(), figures=()), Page())
