/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * For those who keep unused memory for its next use: with AddressSanitizer it is poisoned
 * meanwhile, so that a use after it was given back is caught like one after free(). Without:
 * nothing.
 */
#ifndef QCOWD_BASE_POISON_H
#define QCOWD_BASE_POISON_H

#include <stddef.h>

#if defined(__SANITIZE_ADDRESS__)
#define POISON_ACTIVE 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define POISON_ACTIVE 1
#endif
#endif

#ifdef POISON_ACTIVE
/* Of the sanitizer's run-time library. */
void __asan_poison_memory_region(void const volatile *address, size_t len);
void __asan_unpoison_memory_region(void const volatile *address, size_t len);
#define POISON(address, len)   __asan_poison_memory_region((address), (len))
#define UNPOISON(address, len) __asan_unpoison_memory_region((address), (len))
#else
#define POISON(address, len)   ((void)(address), (void)(len))
#define UNPOISON(address, len) ((void)(address), (void)(len))
#endif

#endif
