"""Tables of times of several programs that did the same, for the benchmarks that compare throughput."""

import statistics
from collections.abc import Sequence


def summarise(
    took: dict[str, list[float]], size: int, columns: Sequence[str], against: tuple[str, str], startup: str
) -> list[dict[str, str]]:
    """Return rows: name, median, lowest and highest seconds, GB/s, and two ratios.

    Parameters
    ----------
    took : dict
        Seconds by method, of each repeat.
    size : int
        Bytes that each handled.
    columns : sequence of str
        Names of the table's seven columns.
    against : (str, str)
        Methods for the ratios, which are medians over the repeats, each against the same repeat.
    startup : str
        Method that only starts up: it has no throughput and no ratio.
    """

    def ratio(times: list[float], other: str) -> str:
        return f"{statistics.median(t / c for t, c in zip(times, took[other], strict=True)):.3f}"

    rows = []
    for name, times in took.items():
        median = statistics.median(times)
        numbers = [f"{median:.3f}", f"{min(times):.3f}", f"{max(times):.3f}", f"{size / 1e9 / median:.3f}"]
        numbers += [ratio(times, other) for other in against]
        if name == startup:
            numbers[3:] = ["-"] * 3
        rows.append(dict(zip(columns, [name, *numbers], strict=True)))
    return rows
