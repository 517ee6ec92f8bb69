/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Leaving one stack and going on with another: what the processor needs, and what the sanitizers
 * must be told. Private to co.c.
 *
 * x86_64 and aarch64 have a switch of their own: only what the calling convention lets a callee
 * keep is saved, and no signal mask is touched, where swapcontext() makes a system call each time.
 * Other processors get swapcontext().
 *
 * scripts/qcowd-gdb.py reads the layout of the saved registers: change both together.
 */
#ifndef QCOWD_SCHED_CONTEXT_H
#define QCOWD_SCHED_CONTEXT_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define CONTEXT_ASAN 1
#endif
#if __has_feature(thread_sanitizer)
#define CONTEXT_TSAN 1
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
#define CONTEXT_ASAN 1
#endif
#ifdef __SANITIZE_THREAD__
#define CONTEXT_TSAN 1
#endif

#if !defined(__x86_64__) && !defined(__aarch64__)
#define CONTEXT_UCONTEXT 1
#include <assert.h>
#include <ucontext.h>
#endif

#ifdef CONTEXT_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef CONTEXT_TSAN
#include <sanitizer/tsan_interface.h>
#endif

typedef void context_entry(void *arg);

struct context {
#ifdef CONTEXT_UCONTEXT
    ucontext_t ucontext;
#else
    void *saved_sp; /* the saved registers lie here while it is not running */
#endif
#ifdef CONTEXT_ASAN
    void *fake_stack;
    const void *stack_bottom;
    size_t stack_bytes;
#endif
#ifdef CONTEXT_TSAN
    void *fiber;
#endif
};

#ifdef __x86_64__

/* Keep rsp + 0: mxcsr, 4: x87 control word, 8: r15 r14 r13 r12 rbx rbp, 56: return address. */
#define CONTEXT_SAVED_WORDS 8

void qcowd_context_switch(void **save_sp, void *load_sp);
void qcowd_context_start(void);

__asm__(".pushsection .text\n"
        ".p2align 4\n"
        ".globl qcowd_context_switch\n"
        ".hidden qcowd_context_switch\n"
        ".type qcowd_context_switch, @function\n"
        "qcowd_context_switch:\n"
        ".cfi_startproc\n"
        "    leaq -56(%rsp), %rsp\n"
        ".cfi_adjust_cfa_offset 56\n"
        "    stmxcsr (%rsp)\n"
        "    fnstcw 4(%rsp)\n"
        "    movq %r15, 8(%rsp)\n"
        "    movq %r14, 16(%rsp)\n"
        "    movq %r13, 24(%rsp)\n"
        "    movq %r12, 32(%rsp)\n"
        "    movq %rbx, 40(%rsp)\n"
        "    movq %rbp, 48(%rsp)\n"
        "    movq %rsp, (%rdi)\n"
        "    movq %rsi, %rsp\n"
        "    ldmxcsr (%rsp)\n"
        "    fldcw 4(%rsp)\n"
        "    movq 8(%rsp), %r15\n"
        "    movq 16(%rsp), %r14\n"
        "    movq 24(%rsp), %r13\n"
        "    movq 32(%rsp), %r12\n"
        "    movq 40(%rsp), %rbx\n"
        "    movq 48(%rsp), %rbp\n"
        "    leaq 56(%rsp), %rsp\n"
        ".cfi_adjust_cfa_offset -56\n"
        "    ret\n"
        ".cfi_endproc\n"
        ".size qcowd_context_switch, . - qcowd_context_switch\n"
        /* The first frame of a stack: no return address, so that backtraces end here. */
        ".p2align 4\n"
        ".globl qcowd_context_start\n"
        ".hidden qcowd_context_start\n"
        ".type qcowd_context_start, @function\n"
        "qcowd_context_start:\n"
        ".cfi_startproc\n"
        ".cfi_undefined rip\n"
        "    xorl %ebp, %ebp\n"
        "    movq %rbx, %rdi\n"
        "    callq *%r12\n"
        "    ud2\n"
        ".cfi_endproc\n"
        ".size qcowd_context_start, . - qcowd_context_start\n"
        ".popsection\n");

static inline void context_prepare_registers(struct context *context, void *stack_top,
                                             context_entry *entry, void *arg)
{
    uint64_t *words = (uint64_t *)stack_top - CONTEXT_SAVED_WORDS;
    words[0] = 0x1f80U | (0x037fULL << 32); /* both as a new process has them */
    words[1] = words[2] = words[3] = 0;
    words[4] = (uintptr_t)entry;
    words[5] = (uintptr_t)arg;
    words[6] = 0;
    words[7] = (uintptr_t)qcowd_context_start;
    context->saved_sp = words;
}

#elif defined(__aarch64__)

/* Keep sp + 0: x19 ... x28, 80: x29 x30, 96: d8 ... d15. */
#define CONTEXT_SAVED_WORDS 20

void qcowd_context_switch(void **save_sp, void *load_sp);
void qcowd_context_start(void);

__asm__(".pushsection .text\n"
        ".p2align 4\n"
        ".globl qcowd_context_switch\n"
        ".hidden qcowd_context_switch\n"
        ".type qcowd_context_switch, %function\n"
        "qcowd_context_switch:\n"
        ".cfi_startproc\n"
        "    sub sp, sp, #160\n"
        ".cfi_adjust_cfa_offset 160\n"
        "    stp x19, x20, [sp, #0]\n"
        "    stp x21, x22, [sp, #16]\n"
        "    stp x23, x24, [sp, #32]\n"
        "    stp x25, x26, [sp, #48]\n"
        "    stp x27, x28, [sp, #64]\n"
        "    stp x29, x30, [sp, #80]\n"
        "    stp d8, d9, [sp, #96]\n"
        "    stp d10, d11, [sp, #112]\n"
        "    stp d12, d13, [sp, #128]\n"
        "    stp d14, d15, [sp, #144]\n"
        "    mov x9, sp\n"
        "    str x9, [x0]\n"
        "    mov sp, x1\n"
        "    ldp x19, x20, [sp, #0]\n"
        "    ldp x21, x22, [sp, #16]\n"
        "    ldp x23, x24, [sp, #32]\n"
        "    ldp x25, x26, [sp, #48]\n"
        "    ldp x27, x28, [sp, #64]\n"
        "    ldp x29, x30, [sp, #80]\n"
        "    ldp d8, d9, [sp, #96]\n"
        "    ldp d10, d11, [sp, #112]\n"
        "    ldp d12, d13, [sp, #128]\n"
        "    ldp d14, d15, [sp, #144]\n"
        "    add sp, sp, #160\n"
        ".cfi_adjust_cfa_offset -160\n"
        "    ret\n"
        ".cfi_endproc\n"
        ".size qcowd_context_switch, . - qcowd_context_switch\n"
        /* The first frame of a stack: no return address, so that backtraces end here. */
        ".p2align 4\n"
        ".globl qcowd_context_start\n"
        ".hidden qcowd_context_start\n"
        ".type qcowd_context_start, %function\n"
        "qcowd_context_start:\n"
        ".cfi_startproc\n"
        ".cfi_undefined x30\n"
        "    mov x29, xzr\n"
        "    mov x30, xzr\n"
        "    mov x0, x19\n"
        "    blr x20\n"
        "    brk #0\n"
        ".cfi_endproc\n"
        ".size qcowd_context_start, . - qcowd_context_start\n"
        ".popsection\n");

static inline void context_prepare_registers(struct context *context, void *stack_top,
                                             context_entry *entry, void *arg)
{
    uint64_t *words = (uint64_t *)stack_top - CONTEXT_SAVED_WORDS;
    memset(words, 0, CONTEXT_SAVED_WORDS * sizeof(*words));
    words[0] = (uintptr_t)arg;
    words[1] = (uintptr_t)entry;
    words[11] = (uintptr_t)qcowd_context_start;
    context->saved_sp = words;
}

#else

/* makecontext() passes ints only: a pointer goes in two halves. */
static inline void context_ucontext_start(unsigned entry_high, unsigned entry_low,
                                          unsigned arg_high, unsigned arg_low)
{
    uintptr_t entry = (uintptr_t)((uint64_t)entry_high << 32 | entry_low);
    uintptr_t arg = (uintptr_t)((uint64_t)arg_high << 32 | arg_low);
    ((context_entry *)entry)((void *)arg);
    __builtin_trap();
}

static inline void context_prepare_ucontext(struct context *context, void *stack,
                                            size_t stack_bytes, context_entry *entry, void *arg)
{
    uint64_t entry_bits = (uintptr_t)entry;
    uint64_t arg_bits = (uintptr_t)arg;
    int failed = getcontext(&context->ucontext);
    assert(!failed);
    context->ucontext.uc_stack.ss_sp = stack;
    context->ucontext.uc_stack.ss_size = stack_bytes;
    context->ucontext.uc_link = NULL;
    makecontext(&context->ucontext, (void (*)(void))context_ucontext_start, 4,
                (unsigned)(entry_bits >> 32), (unsigned)entry_bits, (unsigned)(arg_bits >> 32),
                (unsigned)arg_bits);
}

#endif

/*
 * Makes `context` one that calls entry(arg) on [stack, stack + stack_bytes) when it is first
 * switched to. Both ends of the stack are multiples of 16. entry begins with context_arrive() and
 * never returns.
 */
static inline void context_prepare(struct context *context, char *stack, size_t stack_bytes,
                                   context_entry *entry, void *arg)
{
#ifdef CONTEXT_UCONTEXT
    context_prepare_ucontext(context, stack, stack_bytes, entry, arg);
#else
    context_prepare_registers(context, stack + stack_bytes, entry, arg);
#endif
#ifdef CONTEXT_ASAN
    /* The last user of this stack never returned from its first frames: they left poison behind. */
    __asan_unpoison_memory_region(stack, stack_bytes);
    context->fake_stack = NULL;
    context->stack_bottom = stack;
    context->stack_bytes = stack_bytes;
#endif
#ifdef CONTEXT_TSAN
    context->fiber = __tsan_create_fiber(0);
#endif
}

/* After the last switch away from it, on another stack. */
static inline void context_dispose(struct context *context)
{
#ifdef CONTEXT_TSAN
    __tsan_destroy_fiber(context->fiber);
#else
    (void)context;
#endif
}

/*
 * Leaves `from` for `to`; comes back when somebody switches to `from`. `last` when nobody ever
 * will. Whoever comes on the processor calls context_arrive() first.
 */
static inline void context_switch(struct context *from, struct context *to, _Bool last)
{
    (void)last;
#ifdef CONTEXT_TSAN
    from->fiber = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(to->fiber, 0);
#endif
#ifdef CONTEXT_ASAN
    __sanitizer_start_switch_fiber(last ? NULL : &from->fake_stack, to->stack_bottom,
                                   to->stack_bytes);
#endif
#ifdef CONTEXT_UCONTEXT
    swapcontext(&from->ucontext, &to->ucontext);
#else
    qcowd_context_switch(&from->saved_sp, to->saved_sp);
#endif
}

/* `here` has come on the processor after `from` has left it. Learns where the stack of `from` lies,
 * which nobody else knows of the driver's. */
static inline void context_arrive(struct context *here, struct context *from)
{
#ifdef CONTEXT_ASAN
    __sanitizer_finish_switch_fiber(here->fake_stack, &from->stack_bottom, &from->stack_bytes);
#else
    (void)here;
    (void)from;
#endif
}

#endif
