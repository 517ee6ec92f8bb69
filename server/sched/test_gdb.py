# SPDX-License-Identifier: BSD-2-Clause
"""qcowd-coroutines must show the stacks of suspended coroutines, in a process and in a core file.

    test_gdb.py GDB-SCRIPT TARGET

Skipped (77) without gdb, or where it may not trace.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile

SKIPPED = 77


def run_gdb(script, target, *commands):
    arguments = ["gdb", "-nx", "-batch", "-iex", "set auto-load safe-path /usr", "-x", script]
    for command in commands:
        arguments += ["-ex", command]
    done = subprocess.run(arguments + [target], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, timeout=100,
                          env=dict(os.environ, DEBUGINFOD_URLS="", LC_ALL="C"))
    return done.stdout


def stack_of(listing, name):
    """The function names of the coroutine's frames."""
    found = re.search(r'coroutine 0x[0-9a-f]+ "%s" (\w+), .*\n((?:    .*\n)*)' % name, listing)
    if not found:
        sys.exit("no coroutine '%s' in:\n%s" % (name, listing))
    return found.group(1), re.findall(r"^    #\d+ +0x[0-9a-f]+ in (\w+)", found.group(2), re.M)


def check_listing(listing):
    for name, depth in (("shallow", 1), ("deeper", 2), ("deepest", 3), ("in the other thread", 4)):
        state, frames = stack_of(listing, name)
        if state != "suspended":
            sys.exit("'%s' is %s:\n%s" % (name, state, listing))
        for function, times in (("switch_to", 1), ("co_wait_at_depth", depth + 1),
                                ("wait_in_slot", 1), ("coro_main", 1)):
            if frames.count(function) != times:
                sys.exit("'%s': %d frames of %s, not %d:\n%s"
                         % (name, frames.count(function), function, times, listing))
        if frames[-1] != "qcowd_context_start":
            sys.exit("'%s' does not end at its first frame:\n%s" % (name, listing))
    if stack_of(listing, "running")[0] != "running" or "\n5 coroutines\n" not in listing:
        sys.exit("the running coroutine is not as it should be:\n" + listing)


def main(script, target):
    if not shutil.which("gdb"):
        return SKIPPED
    with tempfile.TemporaryDirectory() as directory:
        core = os.path.join(directory, "core")
        output = run_gdb(script, target, "break all_are_in_place", "run", "qcowd-coroutines", "bt",
                         "generate-core-file " + core, "qcowd-coroutines deeper", "continue")
        if "Breakpoint 1, all_are_in_place" not in output:
            if re.search(r"[Pp]trace|[Pp]ython|personality|Couldn't|Cannot", output):
                print(output)
                return SKIPPED
            sys.exit("gdb did not stop at the breakpoint:\n" + output)
        if "exited normally" not in output:
            sys.exit("looking has harmed the process:\n" + output)
        live, rest = output.split("5 coroutines", 1)
        check_listing(live + "5 coroutines\n")
        backtrace = rest.split("Saved corefile")[0]
        frames = re.findall(r"^#\d+ .*", backtrace, re.M)
        if not frames or "qcowd_context_start" not in frames[-1] or "corrupt" in backtrace:
            sys.exit("the running coroutine's backtrace does not end cleanly:\n" + backtrace)
        if '"deeper"' not in rest or '"shallow"' in rest or "\n1 coroutines" not in rest:
            sys.exit("choosing by name does not work:\n" + rest)
        dead = run_gdb(script, target, "core-file " + core, "qcowd-coroutines")
        if "cannot find its scheduler" in dead:
            print("no thread-local variables in core files here:\n" + dead)
        else:
            check_listing(dead)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
