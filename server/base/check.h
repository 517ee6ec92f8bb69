/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Arithmetic on numbers that a stranger chose: every sum and product of image or wire fields goes
 * through here, so that it cannot wrap. Also rounding and small helpers used on every floor.
 */
#ifndef QCOWD_BASE_CHECK_H
#define QCOWD_BASE_CHECK_H

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ARRAY_LEN(array) (sizeof(array) / sizeof((array)[0]))
#define MIN_OF(a, b)     ((a) < (b) ? (a) : (b))
#define MAX_OF(a, b)     ((a) > (b) ? (a) : (b))

#define container_of(ptr, type, member) \
    ((type *)(void *)((char *)(uintptr_t)(ptr) - (offsetof(type, member))))

/* True when the sum or product fits; *out is set only then. */
static inline bool add_u64(uint64_t a, uint64_t b, uint64_t *out)
{
    uint64_t sum;
    if (__builtin_add_overflow(a, b, &sum)) {
        return false;
    }
    *out = sum;
    return true;
}

static inline bool mul_u64(uint64_t a, uint64_t b, uint64_t *out)
{
    uint64_t product;
    if (__builtin_mul_overflow(a, b, &product)) {
        return false;
    }
    *out = product;
    return true;
}

/* Whether [offset, offset + len) lies inside [0, size), without wrapping. */
static inline bool range_inside(uint64_t offset, uint64_t len, uint64_t size)
{
    return offset <= size && len <= size - offset;
}

static inline bool is_power_of_two(uint64_t value)
{
    return value != 0 && (value & (value - 1)) == 0;
}

/* unit is a power of two; round_up_to asserts that the result fits. */
static inline uint64_t round_down_to(uint64_t value, uint64_t unit)
{
    return value & ~(unit - 1);
}

static inline uint64_t round_up_to(uint64_t value, uint64_t unit)
{
    assert(value <= UINT64_MAX - (unit - 1));
    return (value + (unit - 1)) & ~(unit - 1);
}

static inline uint64_t div_round_up(uint64_t value, uint64_t unit)
{
    return value / unit + (value % unit != 0);
}

#endif
