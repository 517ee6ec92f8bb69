/* SPDX-License-Identifier: BSD-2-Clause */
/* The kernel is asked (/proc/self/smaps) what it thinks of the pages. */
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/check.h"
#include "base/log.h"
#include "base/testing.h"
#include "crypto/secret.h"

/* Sanitizers do as if they locked. */
#if defined(__SANITIZE_ADDRESS__)
#define LOCKS false
#elif defined(__has_feature)
#define LOCKS (!__has_feature(address_sanitizer))
#else
#define LOCKS true
#endif

/* Whether the mapping that `pointer` lies in has a flag, as the kernel writes it ("dd", "lo"). */
static bool has_flag(const void *pointer, const char *flag)
{
    char line[512];
    bool mine = false, found = false;
    FILE *maps = fopen("/proc/self/smaps", "r");

    ck_assert_ptr_nonnull(maps);
    while (fgets(line, sizeof(line), maps)) {
        unsigned long start, end;
        if (sscanf(line, "%lx-%lx ", &start, &end) == 2) {
            mine = (uintptr_t)pointer >= start && (uintptr_t)pointer < end;
        } else if (mine && strncmp(line, "VmFlags:", 8) == 0) {
            found = strstr(line + 8, flag) != NULL;
        }
    }
    fclose(maps);
    return found;
}

START_TEST(pages_are_locked_and_not_dumped)
{
    uint8_t *secret = secret_alloc(100);
    static const uint8_t zeroes[100];

    ck_assert_ptr_nonnull(secret);
    ck_assert_mem_eq(secret, zeroes, sizeof(zeroes));
    ck_assert_uint_eq((uintptr_t)secret % 64, 0);
    ck_assert(has_flag(secret, " dd"));
    ck_assert(has_flag(secret, " lo") || !LOCKS);
    ck_assert(!has_flag(stdout, " dd"));
    secret_free(secret);
}
END_TEST

START_TEST(they_are_known_until_they_are_freed)
{
    void *one = secret_alloc(1);
    void *large = secret_alloc(100000);

    memset(large, 0x5a, 100000);
    ck_assert(secret_is(one) && secret_is(large));
    ck_assert(!secret_is((uint8_t *)large + 64) && !secret_is(&one));
    ck_assert_uint_eq(secret_len(large), 100000);
    secret_free(one);
    ck_assert(!secret_is(one) && secret_is(large));
    secret_free(large);
    secret_free(NULL);
    ck_assert_ptr_null(secret_alloc(SIZE_MAX - 10));
}
END_TEST

static unsigned warnings;

static void count_warning(enum log_level level, const char *line, void *arg)
{
    (void)arg;
    if (level == LOG_LEVEL_WARNING && strstr(line, "cannot lock")) {
        warnings++;
    }
}

START_TEST(without_a_limit_to_lock_there_is_one_warning)
{
    struct rlimit none = {0, 0};

    /* Root may lock in spite of limits. */
    if (geteuid() == 0 && setresuid(65534, 65534, 65534) < 0) {
        return;
    }
    ck_assert_int_eq(setrlimit(RLIMIT_MEMLOCK, &none), 0);
    log_set_sink(count_warning, NULL);
    void *one = secret_alloc(10);
    void *two = secret_alloc(10);
    ck_assert(one && two);
    ck_assert_uint_eq(warnings, LOCKS ? 1 : 0);
    secret_free(one);
    secret_free(two);
    log_set_sink(NULL, NULL);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("secret");
    TCase *tc = tcase_create("secret");
    tcase_add_test(tc, pages_are_locked_and_not_dumped);
    tcase_add_test(tc, they_are_known_until_they_are_freed);
    tcase_add_test(tc, without_a_limit_to_lock_there_is_one_warning);
    suite_add_tcase(suite, tc);
    return test_suite_run(suite);
}
