"""Print recorded results as Markdown tables: ``python benchmarks/table.py [FILE ...]``.

Without files, all of ``benchmarks/results/`` is printed. Losses are marked.
"""

import argparse
from pathlib import Path

from cba_fast.bench.records import read_records
from cba_fast.bench.tables import tables

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path)
    args = parser.parse_args()
    for path in args.files or sorted(RESULTS.glob("*.jsonl")):
        print(tables(read_records(path)))


if __name__ == "__main__":
    main()
