/* SPDX-License-Identifier: BSD-2-Clause */
#include <arpa/inet.h>
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/testing.h"
#include "config/access.h"

static struct stream_origin from_ip(const char *text)
{
    struct stream_origin origin = {.kind = ORIGIN_IP};
    char mapped[64] = "::ffff:";
    strcat(mapped, text);
    ck_assert(inet_pton(AF_INET6, strchr(text, ':') ? text : mapped, &origin.address) == 1);
    return origin;
}

static bool matches(const char *rule_text, struct stream_origin origin)
{
    struct origin_rule rule;
    struct errtext err = {.text = ""};
    int result = origin_rule_parse(&rule, rule_text, &err);
    ck_assert_msg(result == 0, "%s: %s", rule_text, err.text);
    return origin_rule_matches(&rule, &origin);
}

START_TEST(addresses_and_prefixes)
{
    static const struct {
        const char *rule;
        const char *client;
        bool match;
    } cases[] = {
        {"127.0.0.1", "127.0.0.1", true},
        {"127.0.0.1", "127.0.0.2", false},
        {"10.0.0.0/8", "10.255.255.255", true},
        {"10.0.0.0/8", "11.0.0.0", false},
        {"10.128.0.0/9", "10.127.255.255", false},
        {"10.128.0.0/9", "10.128.0.0", true},
        {"192.0.2.252/30", "192.0.2.255", true},
        {"192.0.2.252/30", "192.0.2.251", false},
        {"192.0.2.1/32", "192.0.2.1", true},
        {"192.0.2.1/32", "192.0.2.0", false},
        {"0.0.0.0/0", "203.0.113.9", true},
        {"0.0.0.0/0", "::1", false},
        {"::/0", "2001:db8::1", true},
        {"::/0", "10.0.0.1", false},
        {"::1", "::1", true},
        {"::1", "::2", false},
        {"2001:db8::/33", "2001:db8:7fff::1", true},
        {"2001:db8::/33", "2001:db8:8000::1", false},
        {"::ffff:10.0.0.0/104", "10.1.2.3", true},
        {"::ffff:10.0.0.1", "10.0.0.1", true},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        ck_assert_msg(matches(cases[i].rule, from_ip(cases[i].client)) == cases[i].match,
                      "%s and %s", cases[i].rule, cases[i].client);
    }
    ck_assert(!matches("0.0.0.0/0", (struct stream_origin){.kind = ORIGIN_UNIX}));
    ck_assert(!matches("::/0", (struct stream_origin){.kind = ORIGIN_UNKNOWN}));
}
END_TEST

START_TEST(other_origins)
{
    gid_t groups[] = {5, 4000000000};
    struct stream_origin local = {
        .kind = ORIGIN_UNIX,
        .local = {.user = 1000, .group = 100, .more_count = 2, .more = groups}};
    struct stream_origin nobody = {.kind = ORIGIN_UNKNOWN};
    struct stream_origin pipes = {.kind = ORIGIN_STDIO};
    struct stream_origin guest = {.kind = ORIGIN_VSOCK, .vsock_cid = 3};
    ck_assert(matches("unix", local) && !matches("unix", pipes) && !matches("unix", nobody));
    ck_assert(matches("user:1000", local) && !matches("user:100", local));
    ck_assert(!matches("user:root", local) && !matches("user:0", nobody));
    ck_assert(matches("group:100", local) && !matches("group:1000", local));
    ck_assert(matches("group:5", local) && matches("group:4000000000", local));
    ck_assert(!matches("group:6", local) && !matches("group:0", pipes));
    ck_assert(matches("stdio", pipes) && !matches("stdio", local));
    ck_assert(matches("vsock:3", guest) && !matches("vsock:4", guest) &&
              !matches("vsock:3", local));
    local.local.user = 0;
    local.local.group = 0;
    ck_assert(matches("user:root", local) && matches("group:root", local));
}
END_TEST

START_TEST(bad_rules_say_what_is_wrong)
{
    static const struct {
        const char *rule;
        const char *says;
        int result;
    } cases[] = {
        {"", "must be unix, user:NAME", -EINVAL},
        {"Unix", "must be unix", -EINVAL},
        {"10.0.0", "must be unix", -EINVAL},
        {"10.0.0.256", "must be unix", -EINVAL},
        {"example.org", "must be unix", -EINVAL},
        {"10.0.0.0/33", "0 to 32", -EINVAL},
        {"10.0.0.0/", "0 to 32", -EINVAL},
        {"10.0.0.0/-1", "0 to 32", -EINVAL},
        {"10.0.0.1/8", "behind the prefix", -EINVAL},
        {"::/129", "0 to 128", -EINVAL},
        {"::1/64", "behind the prefix", -EINVAL},
        {"user:", "missing", -EINVAL},
        {"group:", "missing", -EINVAL},
        {"user:no-such-user-here", "no such user", -ENOENT},
        {"group:no-such-group-here", "no such group", -ENOENT},
        {"user:4294967296", "no such user", -ENOENT},
        {"vsock:", "number", -EINVAL},
        {"vsock:x", "number", -EINVAL},
        {"\x01\xff", "\\x01\\xff", -EINVAL},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct origin_rule rule;
        struct errtext err = {.text = ""};
        ck_assert_int_eq(origin_rule_parse(&rule, cases[i].rule, &err), cases[i].result);
        ck_assert_msg(strstr(err.text, cases[i].says) != NULL, "'%s': %s", cases[i].rule, err.text);
    }
    char longest[400];
    memset(longest, '1', sizeof(longest) - 1);
    longest[sizeof(longest) - 1] = '\0';
    struct origin_rule rule;
    ck_assert_int_eq(origin_rule_parse(&rule, longest, NULL), -EINVAL);
}
END_TEST

START_TEST(both_kinds_must_match)
{
    struct access access = {0};
    struct errtext err;
    struct stream_origin here = from_ip("127.0.0.1");
    struct stream_origin there = from_ip("192.0.2.1");
    ck_assert(access_admits(&access, NULL, NULL));
    ck_assert_int_eq(access_allow_identity(&access, "psk:alice", &err), 0);
    ck_assert_int_eq(access_allow_identity(&access, "dn:CN=vm1,O=Example", &err), 0);
    ck_assert(!access_admits(&access, &here, NULL));
    ck_assert(access_admits(&access, &here, "psk:alice"));
    ck_assert(access_admits(&access, NULL, "dn:CN=vm1,O=Example"));
    ck_assert(!access_admits(&access, &here, "dn:CN=vm1"));
    ck_assert(!access_admits(&access, &here, "dn:alice"));
    ck_assert(!access_admits(&access, &here, "psk:alic"));
    ck_assert_int_eq(access_allow_origin(&access, "unix", &err), 0);
    ck_assert_int_eq(access_allow_origin(&access, "127.0.0.0/8", &err), 0);
    ck_assert(access_admits(&access, &here, "psk:alice"));
    ck_assert(!access_admits(&access, &there, "psk:alice"));
    ck_assert(!access_admits(&access, &here, "psk:bob"));
    ck_assert(!access_admits(&access, NULL, "psk:alice"));
    ck_assert_int_eq(access_allow_identity(&access, "carol", &err), 0);
    ck_assert(access_admits(&access, &here, "psk:carol") &&
              access_admits(&access, &here, "dn:carol"));
    ck_assert_int_eq(access_allow_identity(&access, "", &err), -EINVAL);
    ck_assert_int_eq(access_allow_identity(&access, "psk:", &err), -EINVAL);

    struct access copy;
    ck_assert_int_eq(access_copy(&copy, &access), 0);
    ck_assert(access_equal(&copy, &access));
    ck_assert_int_eq(access_allow_origin(&copy, "stdio", &err), 0);
    ck_assert(!access_equal(&copy, &access));
    access_free(&copy);
    ck_assert_int_eq(access_copy(&copy, &access), 0);
    ck_assert_int_eq(access_allow_identity(&copy, "dave", &err), 0);
    ck_assert(!access_equal(&copy, &access));
    access_free(&copy);
    access_free(&access);
    ck_assert(access_admits(&access, NULL, NULL));
}
END_TEST

START_TEST(rules_are_bounded)
{
    struct access access = {0};
    struct errtext err;
    for (unsigned i = 0; i < ACCESS_RULES_MAX; i++) {
        ck_assert_int_eq(access_allow_origin(&access, "unix", &err), 0);
        ck_assert_int_eq(access_allow_identity(&access, "alice", &err), 0);
    }
    ck_assert_int_eq(access_allow_origin(&access, "unix", &err), -EINVAL);
    ck_assert_int_eq(access_allow_identity(&access, "alice", &err), -EINVAL);
    access_free(&access);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("access");
    TCase *tcase = tcase_create("access");
    tcase_add_test(tcase, addresses_and_prefixes);
    tcase_add_test(tcase, other_origins);
    tcase_add_test(tcase, bad_rules_say_what_is_wrong);
    tcase_add_test(tcase, both_kinds_must_match);
    tcase_add_test(tcase, rules_are_bounded);
    suite_add_tcase(suite, tcase);
    return test_suite_run(suite);
}
