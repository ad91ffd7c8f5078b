"""Where the time of a step on a card goes: kernels by name, with Nsight Compute's clock.

    python3 benches/gpu/step_profile.py --skip 2000 --count 3000 -- ./card --seconds 1 8x512.so
"""

import argparse
import collections
import csv
import re
import subprocess


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--skip", type=int, default=0, help="launches before the first that counts")
    parser.add_argument("--count", type=int, default=3000, help="launches that count")
    parser.add_argument("--rows", type=int, default=40)
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()
    profiler = ["ncu", "--clock-control", "none", "--metrics", "gpu__time_duration.sum", "--csv"]
    window = ["--launch-skip", str(arguments.skip), "--launch-count", str(arguments.count)]
    answer = subprocess.run(
        [*profiler, *window, *arguments.command], capture_output=True, text=True, check=False
    )
    lines = answer.stdout.splitlines()
    start = next((n for n, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        raise SystemExit(answer.stdout[-2000:] + answer.stderr[-2000:])
    scale = {"ns": 1e-6, "us": 1e-3, "ms": 1.0, "nsecond": 1e-6, "usecond": 1e-3, "msecond": 1.0}
    totals: dict[str, list[float]] = collections.defaultdict(list)
    for row in csv.DictReader(lines[start:]):
        name = re.sub(r"<.*|\(.*", "", row["Kernel Name"]).split("::")[-1]
        shape = f" {row['Grid Size']} {row['Block Size']}"
        totals[name + shape].append(float(row["Metric Value"].replace(",", "")) * scale[row["Metric Unit"]])
    whole = sum(map(sum, totals.values()))
    print(f"{whole:.2f} ms in {sum(map(len, totals.values()))} launches")
    for name, times in sorted(totals.items(), key=lambda item: -sum(item[1]))[: arguments.rows]:
        print(f"{sum(times):9.3f} ms {sum(times) / whole:6.1%} {len(times):5} x {sum(times) / len(times):8.4f}  {name[:110]}")


if __name__ == "__main__":
    main()
