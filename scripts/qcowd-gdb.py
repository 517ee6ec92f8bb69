# SPDX-License-Identifier: BSD-2-Clause
"""Coroutines of a running or dead qcowd, for gdb.

    (gdb) source scripts/qcowd-gdb.py
    (gdb) qcowd-coroutines            all coroutines of all threads, with their stacks
    (gdb) qcowd-coroutines NAME       those whose name contains NAME

A suspended coroutine's registers lie on its own stack (server/sched/context.h). To print it, an
unwinder claims for a moment that the caller of the selected thread's innermost frame is the coroutine:
nothing in the process is written to, so that core files work as well.
"""

import gdb
from gdb.unwinder import Unwinder

# Register -> offset from the saved stack pointer, and what the stack pointer is after the switch back.
LAYOUTS = {
    "i386:x86-64": {
        "sp": "rsp",
        "pc": "rip",
        "saved": {"r15": 8, "r14": 16, "r13": 24, "r12": 32, "rbx": 40, "rbp": 48, "rip": 56},
        "bytes": 64,
    },
    "aarch64": {
        "sp": "sp",
        "pc": "pc",
        "saved": dict(
            [("x%d" % number, 8 * (number - 19)) for number in range(19, 31)] + [("pc", 88)]
        ),
        "bytes": 160,
    },
}


class FrameId:
    def __init__(self, sp, pc):
        self.sp = sp
        self.pc = pc


class CoroutineUnwinder(Unwinder):
    """Idle unless `saved_sp` is set; then the innermost frame's caller is that coroutine."""

    def __init__(self):
        super().__init__("qcowd-coroutine")
        self.saved_sp = None
        self.real_sp = None
        self.layout = None

    def __call__(self, pending_frame):
        if self.saved_sp is None:
            return None
        sp = pending_frame.read_register(self.layout["sp"])
        if int(sp) != self.real_sp:
            return None
        word = gdb.lookup_type("unsigned long")
        # gdb wants callers to lie above: the frame in between gets an address below the coroutine's.
        below = gdb.Value(self.saved_sp - 16).cast(word)
        unwind_info = pending_frame.create_unwind_info(
            FrameId(below, pending_frame.read_register(self.layout["pc"]))
        )
        for register, offset in self.layout["saved"].items():
            address = gdb.Value(self.saved_sp + offset).cast(word.pointer())
            unwind_info.add_saved_register(register, address.dereference())
        after = gdb.Value(self.saved_sp + self.layout["bytes"]).cast(word)
        unwind_info.add_saved_register(self.layout["sp"], after)
        return unwind_info

    def frames(self, saved_sp):
        """The frames of the coroutine, the innermost first, as lines of text."""
        innermost = gdb.newest_frame()
        self.layout = LAYOUTS[innermost.architecture().name()]
        self.real_sp = int(innermost.read_register(self.layout["sp"]))
        self.saved_sp = saved_sp
        gdb.invalidate_cached_frames()
        try:
            lines = []
            frame = gdb.newest_frame()
            while frame.type() == gdb.INLINE_FRAME:  # the thread's own, like the one around them
                frame = frame.older()
            frame = frame.older()
            while frame is not None and frame.is_valid() and len(lines) < 200:
                lines.append(describe(frame))
                frame = frame.older()
            return lines
        finally:
            self.saved_sp = None
            gdb.invalidate_cached_frames()


def describe(frame):
    name = frame.name() or "??"
    position = frame.find_sal()
    where = ""
    if position.symtab is not None:
        where = " at %s:%d" % (position.symtab.filename, position.line)
    return "0x%016x in %s%s" % (frame.pc(), name, where)


UNWINDER = CoroutineUnwinder()
gdb.unwinder.register_unwinder(None, UNWINDER, replace=True)


def live_coroutines(scheduler):
    coroutine = scheduler["live"]
    oldest_first = []
    while int(coroutine) != 0:
        oldest_first.insert(0, coroutine)
        coroutine = coroutine["live_next"]
    return oldest_first


def print_coroutine(coroutine, scheduler):
    name = coroutine["name"].string() if int(coroutine["name"]) != 0 else "?"
    state = str(coroutine["state"]).replace("CORO_", "").lower()
    print("coroutine 0x%x \"%s\" %s, runs %s" % (int(coroutine), name, state, coroutine["fn"]))
    if int(coroutine) == int(scheduler["running"]):
        print("    (its stack is the thread's own: bt)")
        return
    for number, line in enumerate(UNWINDER.frames(int(coroutine["context"]["saved_sp"]))):
        print("    #%-2d %s" % (number, line))


class Coroutines(gdb.Command):
    """List the coroutines of all threads with their stacks: qcowd-coroutines [NAME]."""

    def __init__(self):
        super().__init__("qcowd-coroutines", gdb.COMMAND_STACK)

    def invoke(self, argument, from_tty):
        inferior = gdb.selected_inferior()
        if not inferior.threads():
            raise gdb.GdbError("there is no process and no core file")
        if gdb.newest_frame().architecture().name() not in LAYOUTS:
            raise gdb.GdbError("coroutine stacks can be read on x86-64 and aarch64 only")
        selected = gdb.selected_thread()
        listed = 0
        try:
            for thread in sorted(inferior.threads(), key=lambda each: each.num):
                thread.switch()
                listed += self.list_thread(thread, argument.strip())
        finally:
            selected.switch()
        print("%d coroutines" % listed)

    def list_thread(self, thread, wanted):
        gdb.newest_frame().select()
        try:
            scheduler = gdb.parse_and_eval("&coro_scheduler")
            scheduler = scheduler.dereference()
            scheduler.fetch_lazy()
        except gdb.error as error:
            print("thread %d: cannot find its scheduler (is libthread_db there, and was qcowd built "
                  "with debug information, without -flto?): %s" % (thread.num, error))
            return 0
        listed = 0
        for coroutine in live_coroutines(scheduler):
            if wanted and wanted not in coroutine["name"].string():
                continue
            if listed == 0:
                print("thread %d:" % thread.num)
            print_coroutine(coroutine, scheduler)
            listed += 1
        return listed


Coroutines()
