import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure as Canvas

from moetool.report.figures_panels import draw_flows, draw_heatmaps, draw_lines
from moetool.report.formats import FORMATS, Page
from moetool.report.report import Figure, Panel
from tests.report.sample_figures import make_figures
from tests.report.sample_report import make_report


def test_svg_is_the_same_for_the_same_report():
    report = replace(make_report(), figures=(*make_report().figures, make_figures(3, 4)[-1]))
    first = FORMATS["svg"].render(report, Page())
    assert first == FORMATS["svg"].render(report, Page())
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


@pytest.mark.parametrize("kind", ["bars", "lines", "heatmap", "flows"])
@pytest.mark.parametrize("values", [(None, None), (0.0, 0.0), (-1.0, 2.0), (1.0,) * 300])
@pytest.mark.parametrize("title", ["$x_{", "中文\n\x00🙂" * 30])
def test_any_figure_can_be_drawn_without_a_warning(kind, values, title):
    panel = Panel(title, (title or "x",) * len(values), ((title, values),), 0.5)
    figure = Figure("f", title, kind, "", (panel,), title, title)
    assert FORMATS["svg"].render(replace(make_report(), figures=(figure,)), Page())


def test_every_figure_of_several_panels_can_be_drawn():
    assert FORMATS["png"].render(replace(make_report(), figures=make_figures(6, 40)), Page())


def test_a_report_without_figures_is_a_picture_of_a_sentence():
    report = replace(make_report(), figures=())
    assert bytes(FORMATS["png"].render(report, Page())).startswith(b"\x89PNG")
    assert b"nothing to draw" in bytes(FORMATS["svg"].render(report, Page()))


@pytest.mark.parametrize(
    ("values", "reference", "expected"),
    [
        ((0.9, 1.0, 4.0), 1.0, {0.0: 0.0, 0.5: 0.25, 1.0: 0.5, 2.5: 0.75, 4.0: 1.0}),
        ((0.9, 1.0, 1.1), 1.0, {0.0: 0.0, 1.0: 0.5, 2.0: 1.0}),
        ((1.0, 1.0, 1.0), 1.0, {1.0: 0.5}),
        ((-1.0, 0.0, 3.0), None, {-3.0: 0.0, 0.0: 0.5, 3.0: 1.0}),
        ((0.0, 0.0, 3.0), 0.0, {-3.0: 0.0, 0.0: 0.5, 3.0: 1.0}),
        ((2.0, 3.0, 6.0), None, {2.0: 0.0, 4.0: 0.5, 6.0: 1.0}),
    ],
)
def test_the_colours_of_a_heatmap_meet_at_its_reference(values, reference, expected):
    canvas = Canvas()
    axis = canvas.subplots()
    panel = Panel("", ("a", "b", "c"), (("row", values),), reference)
    draw_heatmaps(canvas.subfigures(), [axis], Figure("f", "F", "heatmap", "", (panel,)), 2.0)
    norm = axis.images[0].norm
    assert {value: float(norm(value)) for value in expected} == pytest.approx(expected)


def test_one_large_cell_leaves_the_other_colours_apart():
    canvas = Canvas()
    axis = canvas.subplots()
    row = (*np.linspace(1.0, 2.0, 4999).tolist(), 1000.0)
    panel = Panel("", tuple(map(str, range(5000))), (("row", row),))
    draw_heatmaps(canvas.subfigures(), [axis], Figure("f", "F", "heatmap", "", (panel,)), 2.0)
    assert axis.images[0].norm(2.0) > 0.99
    assert axis.images[0].colorbar.extend == "both"


def test_flows_are_as_high_as_their_shares():
    """Loads 3/4 and 1/4 on the left, 1/2 and 1/2 on the right; 85 % of the height are nodes, 15 % the gap."""
    axis = Canvas().subplots()
    draw_flows(axis, Panel("", ("a", "b"), (("x", (2.0, 1.0)), ("y", (0.0, 1.0)))))
    bands = [band.get_paths()[0].get_extents() for band in axis.collections[2:]]
    assert len(bands) == 3
    left, right = (lines.get_segments() for lines in axis.collections[:2])
    heights = [[float(node[1, 1] - node[0, 1]) for node in nodes] for nodes in (left, right)]
    assert heights == [pytest.approx([0.6375, 0.2125]), pytest.approx([0.425, 0.425])]
    assert float(left[1][0, 1]) == pytest.approx(0.7875)
    assert (bands[0].y0, bands[0].y1) == pytest.approx((0.0, 0.425))  # x to a: on top at both sides
    assert (bands[1].y0, bands[1].y1) == pytest.approx((0.425, 0.7875))  # x to b: down across the gap
    assert {text.get_text() for text in axis.texts} == {"x", "y", "a", "b"}
    assert axis.get_title("right") == "bands: 100 % of all"


def test_only_the_largest_flows_are_drawn_and_their_share_is_said():
    axis = Canvas().subplots()
    rows = np.full((40, 40), 1.0)
    rows[:4, :5] = 79.0
    names = tuple(map(str, range(40)))
    draw_flows(
        axis, Panel("", names, tuple((name, tuple(row)) for name, row in zip(names, rows.tolist(), strict=True)))
    )
    assert len(axis.collections) == 2 + 20
    assert axis.get_title("right") == "bands: 50 % of all"  # 20 * 79 of 20 * 79 + 1580


def test_very_many_lines_have_a_short_legend():
    axis = Canvas().subplots()
    draw_lines(axis, Panel("", ("a", "b"), tuple((f"layer {i}", (0.0, float(i))) for i in range(48))))
    names = [text.get_text() for text in axis.get_legend().get_texts()]
    assert len(names) == 8
    assert (names[0], names[-1]) == ("layer 0", "layer 47")
    assert len({line.get_color() for line in axis.lines}) == 48
