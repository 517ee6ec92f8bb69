/* SPDX-License-Identifier: BSD-2-Clause */
#include "listen/admission.h"

#include <arpa/inet.h>
#include <check.h>
#include <linux/vm_sockets.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/check.h"
#include "base/limits.h"
#include "base/testing.h"

static struct admission admission;

static struct origin ip(const char *text)
{
    struct sockaddr_in ipv4 = {.sin_family = AF_INET, .sin_port = 12345};
    struct sockaddr_in6 ipv6 = {.sin6_family = AF_INET6, .sin6_port = 12345};

    if (inet_pton(AF_INET, text, &ipv4.sin_addr) == 1) {
        return origin_of_address((const struct sockaddr *)&ipv4, 0);
    }
    ck_assert(inet_pton(AF_INET6, text, &ipv6.sin6_addr) == 1);
    return origin_of_address((const struct sockaddr *)&ipv6, 0);
}

static bool enter(const char *address, struct place *place)
{
    struct origin origin = ip(address);
    return admission_enter(&admission, &origin, place) == NULL;
}

static bool same(struct origin a, struct origin b)
{
    return a.family == b.family && a.number == b.number;
}

START_TEST(what_counts_as_one_address)
{
    struct sockaddr_vm machine = {.svm_family = AF_VSOCK, .svm_cid = 7};
    struct sockaddr local = {.sa_family = AF_UNIX};
    int pair[2];

    ck_assert(same(ip("10.0.0.1"), ip("10.0.0.1")));
    ck_assert(same(ip("10.0.0.1"), ip("::ffff:10.0.0.1")));
    ck_assert(!same(ip("10.0.0.1"), ip("10.0.0.2")));
    ck_assert(same(ip("2001:db8:1:2::1"), ip("2001:db8:1:2:ffff::")));
    ck_assert(!same(ip("2001:db8:1:2::1"), ip("2001:db8:1:3::1")));
    ck_assert(!same(ip("::1"), ip("0.0.0.0")));
    struct origin vsock = origin_of_address((const struct sockaddr *)&machine, 0);
    ck_assert(vsock.family == AF_VSOCK && vsock.number == 7);
    ck_assert(!same(origin_of_address(&local, 0), origin_of_address(&local, 1000)));
    ck_assert(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    ck_assert(same(origin_of_socket(pair[0]), origin_of_address(&local, getuid())));
    close(pair[0]);
    close(pair[1]);
    ck_assert(origin_of_socket(-1).family == AF_UNSPEC);
}
END_TEST

START_TEST(no_more_than_so_many)
{
    struct place places[4];
    admission_init(&admission, 3, 0, 1234);
    ck_assert(enter("10.0.0.1", &places[0]) && enter("10.0.0.1", &places[1]));
    ck_assert(enter("10.0.0.2", &places[2]));
    ck_assert(!enter("10.0.0.3", &places[3]));
    admission_leave(&admission, &places[1]);
    ck_assert(enter("10.0.0.3", &places[3]));
    ck_assert(!enter("10.0.0.4", &places[1]));
}
END_TEST

START_TEST(no_more_than_so_many_from_one_address)
{
    struct place places[5];
    struct place other;
    struct origin unknown = {.family = AF_UNSPEC};
    admission_init(&admission, 100, 2, 1234);
    ck_assert(enter("10.0.0.1", &places[0]) && enter("10.0.0.1", &places[1]));
    ck_assert(!enter("10.0.0.1", &places[2]));
    ck_assert(enter("2001:db8::1", &places[2]) && enter("2001:db8::2", &places[3]));
    ck_assert(!enter("2001:db8::3", &places[4]));
    ck_assert(enter("2001:db8:0:1::1", &places[4]));
    ck_assert_uint_eq(admission.admitted, 5);
    for (unsigned i = 0; i < 10; i++) {
        ck_assert(admission_enter(&admission, &unknown, &other) == NULL);
    }
    admission_leave(&admission, &places[0]);
    ck_assert(enter("10.0.0.1", &places[0]));
    ck_assert(!enter("10.0.0.1", &other));
    for (unsigned i = 0; i < ARRAY_LEN(places); i++) {
        admission_leave(&admission, &places[i]);
    }
    for (unsigned i = 0; i < ADMISSION_BUCKETS; i++) {
        ck_assert(list_empty(&admission.buckets[i])); /* nothing is remembered */
    }
}
END_TEST

START_TEST(many_addresses_spread)
{
    static struct place places[2000];
    unsigned longest = 0;
    admission_init(&admission, 2000, 1, 0x123456789abcdefULL);
    for (unsigned i = 0; i < ARRAY_LEN(places); i++) {
        struct origin origin = {AF_INET6, (uint64_t)i << 48 | 0x20010db8};
        ck_assert(admission_enter(&admission, &origin, &places[i]) == NULL);
    }
    for (unsigned i = 0; i < ADMISSION_BUCKETS; i++) {
        unsigned len = 0;
        list_for_each(link, &admission.buckets[i]) {
            len++;
        }
        longest = MAX_OF(longest, len);
    }
    ck_assert_uint_lt(longest, 16);
    for (unsigned i = 0; i < ARRAY_LEN(places); i++) {
        admission_leave(&admission, &places[i]);
    }
    ck_assert_uint_eq(admission.admitted, 0);
}
END_TEST

START_TEST(a_few_are_told)
{
    admission_init(&admission, 1, 1, 0);
    for (unsigned i = 0; i < LIMIT_REFUSALS; i++) {
        ck_assert(admission_may_tell(&admission));
    }
    ck_assert(!admission_may_tell(&admission));
    admission_told(&admission);
    ck_assert(admission_may_tell(&admission));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("admission");
    TCase *cases = tcase_create("admission");
    tcase_add_test(cases, what_counts_as_one_address);
    tcase_add_test(cases, no_more_than_so_many);
    tcase_add_test(cases, no_more_than_so_many_from_one_address);
    tcase_add_test(cases, many_addresses_spread);
    tcase_add_test(cases, a_few_are_told);
    suite_add_tcase(suite, cases);
    return test_suite_run(suite);
}
