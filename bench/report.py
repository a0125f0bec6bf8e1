"""How long a report takes, how much memory and how large a page, by the number of trials.

    python bench/report.py            60, 500 and 10,000 made-up trials
    python bench/report.py --quick    60 and 500

Each is written by a process of its own: page, Markdown, CSV and picture. The charts' script is put
together beforehand, as the first report of a user does once.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
COUNTS = (60, 500, 10_000)


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(_measure(arguments.one)))
        return
    from origin import write
    from qsweep.results.html.vega import script

    script()
    rows = []
    for count in COUNTS[:2] if arguments.quick else COUNTS:
        done = subprocess.run(  # noqa: S603 - this script itself
            [sys.executable, __file__, "--one", str(count)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        rows.append(json.loads(done.stdout))
        row = rows[-1]
        print(
            f"{row['trials']:6} trials  {row['seconds']:6.1f} s  "
            f"{row['peak_gb']:5.2f} GB  page {row['page_mb']:5.2f} MB"
        )
    if arguments.json:
        write(arguments.json, "writing a report", rows)


def _measure(count: int) -> dict[str, Any]:
    sys.path.insert(0, str(ROOT / "tests"))
    from helpers.synthetic import synthetic
    from qsweep.results.html import write_report
    from qsweep.results.html.data import SweepData
    from qsweep.results.record_file import record_of

    records = [record_of(content) for content in synthetic(count)]
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        started = time.perf_counter()
        write_report([SweepData("made up", "", records)], page)
        seconds = time.perf_counter() - started
        size = page.stat().st_size / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return {"trials": count, "seconds": seconds, "peak_gb": peak, "page_mb": size}


if __name__ == "__main__":
    main()
