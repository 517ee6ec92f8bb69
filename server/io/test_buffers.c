/* SPDX-License-Identifier: BSD-2-Clause */
/* Alignment, recycling, and that the pool stays bounded. */
#include <check.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "base/testing.h"
#include "io/buffers.h"

START_TEST(buffers_are_aligned_and_usable)
{
    static const size_t lens[] = {1, 512, 4096, 4097, 65536, 65537, 1048576, 33554432, 100000000};

    for (size_t i = 0; i < sizeof(lens) / sizeof(lens[0]); i++) {
        char *buffer = buffer_get(lens[i]);
        ck_assert(buffer != NULL);
        ck_assert((uintptr_t)buffer % BUFFER_ALIGNMENT_BYTES == 0);
        buffer[0] = 1;
        buffer[lens[i] - 1] = 2;
        buffer_put(buffer, lens[i]);
    }
    buffer_pool_drain();
    ck_assert(buffer_pool_bytes() == 0);
}
END_TEST

START_TEST(a_returned_buffer_is_handed_out_again)
{
    void *first = buffer_get(5000);
    buffer_put(first, 5000);
    ck_assert(buffer_pool_bytes() == 8192);
    void *again = buffer_get(8192);
    ck_assert(again == first);
    memset(again, 7, 8192);
    ck_assert(buffer_pool_bytes() == 0);
    buffer_put(again, 8192);
    void *other_class = buffer_get(4096);
    ck_assert(other_class != first);
    buffer_put(other_class, 4096);
    buffer_put(NULL, 4096);
    buffer_pool_drain();
}
END_TEST

START_TEST(the_pool_is_bounded)
{
    enum { COUNT = 600, BYTES = 262144 };
    static void *buffers[COUNT];

    for (unsigned i = 0; i < COUNT; i++) {
        buffers[i] = buffer_get(BYTES);
        ck_assert(buffers[i] != NULL);
    }
    for (unsigned i = 0; i < COUNT; i++) {
        buffer_put(buffers[i], BYTES);
    }
    ck_assert(buffer_pool_bytes() <= 32 * MIB);
    ck_assert(buffer_pool_bytes() > 0);
    buffer_pool_drain();
    ck_assert(buffer_pool_bytes() == 0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("buffers");
    TCase *tests = tcase_create("buffers");
    tcase_add_test(tests, buffers_are_aligned_and_usable);
    tcase_add_test(tests, a_returned_buffer_is_handed_out_again);
    tcase_add_test(tests, the_pool_is_bounded);
    suite_add_tcase(suite, tests);
    return test_suite_run(suite);
}
