"""Print recorded results as Markdown tables: ``python benchmarks/table.py [FILE ...]``.

Without files, all of ``benchmarks/results/`` is printed. Losses are marked. ``--write README.md``
puts a short summary of the records between the markers of that file instead.
"""

import argparse
from pathlib import Path

from cba_fast.bench.records import read_records
from cba_fast.bench.summary import summary
from cba_fast.bench.tables import tables
from cba_fast.files import write_text

RESULTS = Path(__file__).parent / "results"
BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"


def between_markers(text: str, content: str) -> str:
    """Return `text` with `content` between its two markers, each of which it has once.

    Raises:
        ValueError: a marker is missing or there twice.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"the file must have the markers {BEGIN} and {END} once each")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{content}{END}{rest.split(END)[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--write", type=Path, metavar="FILE", help="for example README.md")
    args = parser.parse_args()
    paths = args.files or sorted(RESULTS.glob("*.jsonl"))
    if args.write:
        content = summary(record for path in paths for record in read_records(path))
        text = between_markers(args.write.read_text(encoding="utf-8"), content)
        write_text(args.write, text)
        return
    for path in paths:
        print(tables(read_records(path)))


if __name__ == "__main__":
    main()
