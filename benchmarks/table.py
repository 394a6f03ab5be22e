"""Print recorded results as Markdown tables: ``python benchmarks/table.py [FILE ...]``.

Without files, all of ``benchmarks/results/dwconv_*.jsonl``. Losses are shown as such.
"""

import argparse
from pathlib import Path

from cba_fast.study.bench_records import dwconv_table, read_records

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path)
    args = parser.parse_args()
    for path in args.files or sorted(RESULTS.glob("dwconv_*.jsonl")):
        records = read_records(path)
        if records:
            where = records[-1]["machine"]
            print(f"# {where['cpu']}, {where['isa']}, {where['threads']} threads\n")
            print(dwconv_table(records))


if __name__ == "__main__":
    main()
