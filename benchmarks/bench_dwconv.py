"""The depthwise convolution against PyTorch's ways, in all three directions.

    pytest benchmarks/bench_dwconv.py                       # all cases
    pytest benchmarks/bench_dwconv.py -k "forward and replknet"
    python benchmarks/table.py                              # the records as tables

Results are compared with float64 first. If ours is wrong, the benchmark fails; if PyTorch's is
wrong, it is recorded and not timed.
"""

import pytest
from cases import DWCONV

from cba_fast.bench.dwconv_contest import DIRECTIONS, OURS, OURS_CL, DwconvContest
from cba_fast.bench.tables import ratios


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(
    "case",
    [pytest.param(c, id=f"{group}-{c}") for group, cases in DWCONV.items() for c in cases],
)
def test_dwconv(case, direction, benchmark, play, record, pytestconfig):
    option = pytestconfig.getoption
    contender = DwconvContest(
        case, direction, option("dtype"), option("algorithm"), option("seconds")
    )
    wrong = contender.wrong()
    assert OURS not in wrong, f"relative error {wrong[OURS]:.2g}"
    assert OURS_CL not in wrong, f"relative error {wrong[OURS_CL]:.2g} on channels_last"

    benchmark.group = f"{direction} {case}"
    play(contender.contest, OURS)
    values = contender.record()
    benchmark.extra_info.update(values["timings"] | ratios(values))
    record("dwconv", values)
