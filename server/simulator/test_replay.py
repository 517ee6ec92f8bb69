#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause
"""One seed is one run: its trace is the same alone, after other runs, and in reverse order; disks,
clocks and connections alike."""

import re
import subprocess
import sys

SEEDS = range(1001, 1021)


def run(*arguments):
    return subprocess.run([sys.argv[1], "--hash", *arguments], check=True, text=True,
                          stdout=subprocess.PIPE).stdout


def hashes(output):
    return dict(line.split()[1::2] for line in output.splitlines() if line.startswith("seed "))


def main():
    output = run("--seeds", f"{SEEDS.start}:{len(SEEDS)}")
    together = hashes(output)
    alone = {}
    for seed in reversed(SEEDS):
        alone.update(hashes(run("--seed", str(seed))))
    different = [seed for seed in together if together[seed] != alone[seed]]
    if len(together) != len(SEEDS) or different:
        print(f"seeds whose trace differs between two runs: {different}")
        return 1
    if len(set(together.values())) != len(SEEDS):
        print("different seeds gave the same trace")
        return 1
    ways = re.search(r"(\d+) lives over the network: (\d+) connections \((\d+) broken off\), "
                     r"(\d+) drains", output)
    if not ways or "0" in ways.groups():
        print(f"these seeds do not show every way of the network:\n{output}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
