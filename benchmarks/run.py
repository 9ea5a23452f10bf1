"""Measure what users wait for, and write `benchmarks/RESULTS.md`: `make benchmark`, or one part with `ONLY=name`.

    python -m benchmarks.run [NAME,…]

A part whose needs are not met is left out, and its section stays as it is. To add one, write a function (see
`frame.Part`) in a file of its own and name it in `PARTS`.
"""

import sys
import tempfile
from pathlib import Path

from benchmarks import agreement, cluster, commands, engines, gap, install, logprobs, overlap, records, safety, updates
from benchmarks.frame import Part, Unavailable, replace_section, section

RESULTS = Path(__file__).with_name("RESULTS.md")
PARTS: dict[str, Part] = {
    "install": install.rows,
    "commands": commands.rows,
    "records": records.rows,
    "updates": updates.small,
    "updates-10m": updates.larger,
    "engines": engines.rows,
    "agreement": agreement.rows,
    "overlap": overlap.rows,
    "logprobs": logprobs.rows,
    "safety": safety.rows,
    "gap": gap.rows,
    "slurm": cluster.rows,
}


def measure(name: str) -> None:
    """Run one part, showing its rows as they come, and write its section."""
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        try:
            for row in PARTS[name](Path(folder)):
                rows.append(row)
                print(f"{name}: {row.what}: {row.figure}", flush=True)
        except Unavailable as reason:
            print(f"{name}: left out: {reason}", flush=True)
            return
    replace_section(RESULTS, name, section(name, PARTS[name], rows), list(PARTS))


def main(arguments: list[str]) -> int:
    names = arguments[0].split(",") if arguments else list(PARTS)
    if unknown := [name for name in names if name not in PARTS]:
        print(f"no part {unknown[0]!r} (choose from {', '.join(PARTS)})", file=sys.stderr)
        return 2
    for name in names:
        measure(name)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
