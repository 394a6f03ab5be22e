"""The CSV of points: order, rows of others, one row of each name."""

from pathlib import Path

from cba_fast.analysis.points import Point, append_points, put_points, read_points


def test_put_points_keeps_the_order_and_the_rows_of_others(here):
    rows = [
        "model_name,family,erf_path,wsol",
        "b,f,b.npy,0.5",
        '"x, y",f,x.npy,61.50',
        "a,f,a.npy,1",
    ]
    Path("p.csv").write_text("\n".join(rows))
    put_points("p.csv", [Point("c", "f", "c.npy", 0.25)], ["a", "b", "c"])
    assert Path("p.csv").read_text().splitlines() == [
        *(rows[0], rows[3], rows[2], rows[1], "c,f,c.npy,0.25"),
    ]
    put_points("p.csv", [Point("a", "f", "new.npy", 0.125)], ["a", "b", "c"], remove={"b"})
    assert Path("p.csv").read_text().splitlines() == [
        *(rows[0], "a,f,new.npy,0.125", rows[2], "c,f,c.npy,0.25"),
    ]


def test_put_points_skips_blank_lines_as_reading_does(here):
    rows = ["family,model_name,erf_path,wsol", "f,a,a.npy,0.5", "f,b,b.npy,1.0"]
    Path("p.csv").write_text("\n".join([" , ", " ", rows[0], "\t", rows[1]]) + "\n")
    assert len(read_points("p.csv")) == 1
    put_points("p.csv", [Point("b", "f", "b.npy", 1.0)], ["b"])
    assert Path("p.csv").read_text().splitlines() == rows


def test_put_points_ends_with_one_row_of_each_name(here):
    append_points("p.csv", [Point("a", "f", "a.npy", 0.5), Point("a", "f", "a.npy", 0.75)])
    put_points("p.csv", [Point("b", "f", "b.npy", 1.0)], ["b", "a"])
    assert [(p.model_name, p.wsol) for p in read_points("p.csv")] == [("b", 1.0), ("a", 0.75)]
