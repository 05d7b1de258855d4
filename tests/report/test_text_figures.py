from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetool.report.formats import FORMATS, Page
from moetool.report.formats.text_figures import draw
from moetool.report.report import Figure, Panel
from moetool.report.values import cell_width
from tests.report.sample_figures import make_figures
from tests.report.sample_report import HOSTILE, make_report

KINDS = ("bars", "lines", "heatmap", "flows")


def panel(*values: float | None, title: str = "") -> Panel:
    return Panel(title, tuple(map(str, range(len(values)))), (("s", values),))


def matrix(*rows: tuple[float | None, ...], title: str = "") -> Panel:
    return Panel(title, tuple(map(str, range(len(rows[0])))), tuple((str(i), row) for i, row in enumerate(rows)))


def render(figures: tuple[Figure, ...], width: int = 80, color: bool = False) -> str:
    text = FORMATS["text"].render(replace(make_report(), figures=figures), Page(width, color))
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize(("layers", "experts", "width"), [(4, 8, 80), (48, 128, 80), (48, 128, 120)])
def test_golden(golden, layers, experts, width):
    figures = (figure for figure in make_figures(layers, experts))
    text = "\n".join(f"# {figure.title}\n" + "\n".join(draw(figure, width)) + "\n" for figure in figures)
    golden(f"figures-{layers}x{experts}-{width}.txt", text)


@pytest.mark.parametrize("width", [40, 80, 120, 200])
@pytest.mark.parametrize(("layers", "experts"), [(1, 3), (2, 4), (4, 8), (8, 16), (27, 64), (48, 128)])
def test_figures_fit_a_page(layers, experts, width):
    for figure in make_figures(layers, experts):
        lines = [line for line in draw(figure, width) if "; " not in line and not line.startswith(("Drawn", "Nothing"))]
        assert len(lines) <= 24
        assert all(cell_width(line) <= width for line in lines)


VALUES = st.none() | st.floats(-1e6, 1e6) | st.sampled_from([0.0, 1.0])
NAMES = st.text(max_size=30) | st.sampled_from(HOSTILE)


@st.composite
def figures(draw_value):
    kind = draw_value(st.sampled_from(KINDS))
    columns = draw_value(st.integers(1, 90))
    rows = 1 if kind == "bars" else draw_value(st.integers(1, 30))
    row = st.lists(VALUES, min_size=columns, max_size=columns).map(tuple)
    one = draw_value(row)
    series = tuple((draw_value(NAMES), one[i % columns :] + one[: i % columns]) for i in range(rows))
    names = draw_value(st.lists(NAMES, min_size=3, max_size=3))
    x = tuple(names[i % 3] for i in range(columns))
    one_panel = Panel(names[0], x, series, draw_value(VALUES))
    return Figure("f", names[1], kind, "", (one_panel,) * draw_value(st.integers(1, 60)), names[1], names[2])


@given(figures(), st.sampled_from([40, 80, 120]))
def test_any_figure_fits_a_page_and_is_inert(figure, width):
    lines = draw(figure, width)
    assert all(line.isprintable() for line in lines)
    assert len(lines) <= 33  # 30 labelled bars, their heading and the reference
    drawn = [line for line in lines if line[-1:].isdigit() and "; " not in line and " to " not in line]
    assert all(cell_width(line) <= width for line in drawn if "reference" not in line)


def test_only_figures_for_the_text_format_are_in_it():
    figure = make_figures(4, 8)[0]
    assert figure.title not in render((figure,))
    assert figure.title in render((replace(figure, in_text=True),))


def test_blocks_are_coloured_where_wanted():
    figure = replace(make_figures(4, 8)[0], in_text=True)
    assert "\x1b[34m█" in render((figure,), color=True)
    assert "\x1b" not in render((figure,))


def test_colour_changes_no_character():
    shown = tuple(replace(figure, in_text=True) for figure in make_figures(4, 8))
    colored = render(shown, color=True)
    for line in draw(shown[2], 80):
        assert line[:40] in colored


def test_sparklines_by_hand():
    many = [0.0, 1.0, 8.0, None] * 6
    figure = Figure("f", "F", "bars", "", (panel(*many, title="layer 0"), panel(4.0, title="layer 1")), "expert")
    assert draw(figure, 80) == [
        f"expert  {' ' * 24} min max",
        f"layer 0 {'·▂█?' * 6}   0   8",
        f"layer 1 ▅{' ' * 23}   4   4",
        "▁ to █: 0 to 8; · zero; ? undefined",
    ]


@pytest.mark.parametrize(("width", "ending", "merged"), [(76, "max", 1), (80, "min max", 1), (56, "min max", 2)])
def test_the_smallest_values_give_way_to_a_character_per_x(width, ending, merged):
    """A label of 7, 64 characters and a number of 3 are 76 cells with their gaps; one more number makes 80."""
    panels = tuple(panel(*[1.0] * 64, title=f"layer {i}") for i in range(2))
    lines = draw(Figure("f", "F", "bars", "", panels), width)
    assert lines[0].split() == ["0", "63", *ending.split()]
    assert len(lines[1].split()[2]) == 64 // merged


def test_panels_left_out_are_counted():
    figure = Figure("f", "F", "bars", "", tuple(panel(1.0, 2.0, title=f"layer {i}") for i in range(39)))
    lines = draw(figure, 80)
    assert [line.split()[1] for line in lines[1:21]] == [str(2 * i) for i in range(20)]
    assert lines[-1] == "Drawn: 20 of 39 panels, evenly spaced; --save FILE.svg draws them all."


def test_charts_by_hand():
    """Two charts of 38 cells: a label, 31 cells of bar, a number of 4; 31 cells are 8, so that 4 is cell 15.5."""
    panels = (panel(0.0, 1.0, 8.0, None, title="layer 0"), panel(4.0, title="layer 1"))
    figure = Figure("f", "F", "bars", "", tuple(replace(p, reference=2.0) for p in panels), "expert", "load")
    assert draw(figure, 80) == [
        f"layer 0{' ' * 35}layer 1",
        f"0         │                          0    0 {'█' * 8}│{'█' * 6}▌                4.00",
        "1 ███▉    │                       1.00",
        f"2 {'█' * 8}│{'█' * 22} 8.00",
        "3         │                          ?",
        "load per expert; │ marks 2; ? undefined",
    ]


def test_a_heatmap_says_its_values_where_there_is_room():
    figure = Figure("f", "F", "heatmap", "", (replace(panel(1.0, 1.1, 5.0), reference=1.0),))
    assert draw(figure, 40)[1] == "s ··      ░░1.10  ██5.00"
    assert draw(figure, 12)[1] == "s ···░░░███"


def test_heatmaps_stand_side_by_side_where_they_would_be_too_long():
    panels = tuple(matrix(*[(1.0,) * 7 + (2.0,)] * 8, title=f"layer {i}") for i in range(6))
    lines = draw(Figure("f", "F", "heatmap", "", panels), 80)
    assert lines[0].split() == ["layer", "0", "layer", "1", "layer", "2"]
    assert len(lines) == 2 * (8 + 2) + 1


def test_rows_of_a_heatmap_left_out_are_counted():
    lines = draw(Figure("f", "F", "heatmap", "", (matrix(*[(1.0, 2.0)] * 58),), "rank"), 80)
    assert [line.split()[0] for line in lines[1:21]] == [str(3 * i) for i in range(20)]
    assert lines[-1].startswith("Drawn: 20 of 58 rows")


def test_large_heatmaps_are_their_largest_pairs():
    """Of a symmetric matrix a pair is named once, and no expert beside itself."""
    rows = [[1.0] * 64 for _ in range(64)]
    rows[3][7] = rows[7][3] = 4.0
    rows[3][3] = 9.0
    pairs = matrix(*map(tuple, rows), title="layer 5")
    lines = draw(Figure("f", "F", "heatmap", "", (pairs, pairs), "expert", "lift"), 80)
    assert lines[1].split()[:2] == ["3,", "7"]
    assert sum("3, 7" in line for line in lines) == 1
    assert not any("3, 3" in line or "7, 3" in line for line in lines)
    other = replace(pairs, x=tuple(f"b{i}" for i in range(64)))
    lines = draw(Figure("f", "F", "heatmap", "", (other, other), "expert", "lift"), 80)
    assert lines[1].split()[:2] == ["3,", "b3"]  # rows and columns are different things


def test_flows_by_hand():
    """The largest fills the 30 - 3 cells beside its label of 5 and number of 5 with their gaps."""
    figure = Figure("f", "F", "flows", "", (matrix((0.0, 0.5), (0.25, None), title="layer 0 to 1"),), "", "share")
    assert draw(figure, 42) == [
        "layer 0 to 1",
        f"0 → 1 {'█' * 30} 0.500",
        f"1 → 0 {'█' * 15}{' ' * 15} 0.250",
        "share",
        "The 19 largest links of each panel.",
    ]


def test_flows_without_any():
    figure = Figure("f", "F", "flows", "", (matrix((0.0, None)),))
    assert draw(figure, 80) == ["Nothing to draw: every value is zero or undefined."]


def test_a_plot_by_hand():
    """Eleven rows from 0 to 10, so that a value is its row from below; two x are eight cells apart."""
    series = (("up", (0.0, 8.0, None)), ("down", (10.0, 2.0, 2.0)))
    figure = Figure("f", "F", "lines", "", (Panel("", ("a", "b", "c"), series, 6.0),), "layer", "nats")
    assert draw(figure, 80) == [
        "nats",
        "10 ┤x",
        "   │ x",
        "   │  x     o",
        "   │   x   o",
        "   │----x-o---------- ".rstrip(),
        " 5 ┤     *",
        "   │    o x",
        "   │   o   x",
        "   │  o     xxxxxxxxx",
        "   │ o",
        " 0 ┤o",
        f"   └{'─' * 17}",
        f"    a{' ' * 15}c",
        "across: layer; o up; x down; * several of them; - reference 6",
    ]


def test_more_series_than_marks_are_sparklines():
    series = tuple((f"layer {i}", (0.0, 1.0, 2.0)) for i in range(9))
    lines = draw(Figure("f", "F", "lines", "", (Panel("", ("a", "b", "c"), series),)), 80)
    assert lines[1:10] == [f"layer {i} ·▅█   0   2" for i in range(9)]


def test_a_wide_histogram_keeps_its_peaks():
    values = [0.0] * 1000
    values[501] = 1.0
    lines = draw(Figure("f", "F", "bars", "", (panel(*values, title="a"), panel(*values, title="b"))), 80)
    assert lines[1].count("█") == 1
    assert max(map(cell_width, lines[:-1])) <= 80


@pytest.mark.parametrize("kind", KINDS)
def test_a_figure_without_values_says_so(kind):
    assert draw(Figure("f", "F", kind, "", (panel(None, None),)), 80) == ["Nothing to draw: every value is undefined."]


def test_names_with_wide_characters_line_up():
    figure = make_report().figures[1]
    assert HOSTILE[3] in figure.panels[0].x
    bars = [line for line in draw(figure, 80) if "█" in line]
    assert len({cell_width(line[: line.index("█")]) for line in bars}) == 1
