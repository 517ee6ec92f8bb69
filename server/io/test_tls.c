/* SPDX-License-Identifier: BSD-2-Clause */
/* Credentials: what is taken, and what is refused with which words. */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <gnutls/x509.h>

#include "base/check.h"
#include "base/log.h"
#include "base/testing.h"
#include "io/test_tls.h"
#include "io/tls_keys.h"

#define KEY "000102030405060708090a0b0c0d0e0f"

struct psk_case {
    const char *text;
    unsigned mode;
    const char *refused; /* NULL: taken */
};

static const struct psk_case psk_cases[] = {
    {"alice:" KEY "\n", 0600, NULL},
    {"alice:" KEY, 0640, NULL},
    {"\n\nalice:" KEY "\r\n\nbob:" KEY "\n", 0400, NULL},
    {"with:colon:" KEY "\n", 0600, NULL},
    {"alice:" KEY KEY KEY KEY "\n", 0600, NULL},
    {"alice:000102030405060708090A0B0C0D0E0F\n", 0600, NULL},
    {"alice:" KEY "\n", 0644, "holds secrets, but others may read or write it"},
    {"alice:" KEY "\n", 0660, "holds secrets, but others may read or write it"},
    {"", 0600, "holds no key"},
    {"\n\n", 0600, "holds no key"},
    {"alice:" KEY "\nalice:" KEY "\n", 0600, "has two keys for \"alice\""},
    {"alice:" KEY "\nbob\n", 0600, "line 2: a line must be USERNAME:HEXKEY"},
    {":" KEY "\n", 0600, "line 1: a line must be USERNAME:HEXKEY"},
    {"alice:\n", 0600, "must be 16 to 64 bytes long"},
    {"alice:000102030405060708090a0b0c0d0e\n", 0600, "must be 16 to 64 bytes long"},
    {"alice:" KEY KEY KEY KEY "00\n", 0600, "must be 16 to 64 bytes long"},
    {"alice:" KEY "0\n", 0600, "odd number of hexadecimal digits"},
    {"alice:00010203040506070809zz0b0c0d0e0f\n", 0600, "not written in hexadecimal digits"},
    {"# a comment\nalice:" KEY "\n", 0600, "line 1"},
    {"#616c696365:" KEY "\n", 0600, "may not begin with '#'"},
    {"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
     "aaa"
     "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa:" KEY,
     0600, "longer than 128 bytes"},
};

static void expect(const struct tls_config *config, const char *refused)
{
    struct errtext err = {""};
    struct tls *tls = NULL;
    int result = tls_create(&tls, config, &err);
    if (!refused) {
        ck_assert_msg(result == 0, "%s", err.text);
        tls_free(tls);
        return;
    }
    ck_assert_int_lt(result, 0);
    ck_assert_msg(strstr(err.text, refused) != NULL, "%s", err.text);
}

START_TEST(test_psk_file)
{
    const struct psk_case *c = &psk_cases[_i];
    char *directory = make_directory();
    char path[256];
    struct tls_config config = {.psk_file = path};
    snprintf(path, sizeof(path), "%s/keys", directory);
    write_file(directory, "keys", c->mode, c->text);
    expect(&config, c->refused);
    remove_directory(directory);
}
END_TEST

START_TEST(test_things_that_are_no_key_files)
{
    char *directory = make_directory();
    char path[256];
    struct tls_config config = {.psk_file = path};
    snprintf(path, sizeof(path), "%s/absent", directory);
    expect(&config, "absent: No such file");
    config.psk_file = directory;
    expect(&config, "is no regular file");
    config.psk_file = "/dev/zero";
    expect(&config, "is no regular file");
    snprintf(path, sizeof(path), "%s/fifo", directory);
    ck_assert_int_eq(mkfifo(path, 0600), 0);
    config.psk_file = path;
    expect(&config, "is no regular file");
    snprintf(path, sizeof(path), "%s/large", directory);
    char *large = malloc((1U << 20) + 2);
    ck_assert_ptr_nonnull(large);
    memset(large, '\n', (1U << 20) + 1);
    large[(1U << 20) + 1] = '\0';
    write_file(directory, "large", 0600, large);
    free(large);
    expect(&config, "larger than 1 MiB");
    remove_directory(directory);
}
END_TEST

static void copy(const char *directory, const char *from, const char *to)
{
    char command[512];
    snprintf(command, sizeof(command), "cp -p '%s/%s' '%s/%s'", directory, from, directory, to);
    ck_assert_int_eq(system(command), 0);
}

static void expect_warning(enum log_level level, const char *line, void *arg)
{
    ck_assert_int_eq(level, LOG_LEVEL_WARNING);
    ck_assert_ptr_nonnull(strstr(line, "has expired"));
    ++*(unsigned *)arg;
}

START_TEST(test_certificate_directory)
{
    char *directory = make_directory();
    struct test_ca *ca = test_ca_create(directory);
    struct tls_config config = {.certificates = directory};
    unsigned warnings = 0;
    expect(&config, "server-cert.pem: No such file");
    test_ca_issue(ca, directory, "server", GNUTLS_KP_TLS_WWW_SERVER, -60, 3600);
    test_ca_issue(ca, directory, "other", GNUTLS_KP_TLS_WWW_SERVER, -60, 3600);
    test_ca_issue(ca, directory, "old", GNUTLS_KP_TLS_WWW_SERVER, -600, -60);
    expect(&config, NULL);
    config.verify_peer = true;
    expect(&config, NULL);

    copy(directory, "ca-cert.pem", "ca-crl.pem");
    expect(&config, "ca-crl.pem");
    config.verify_peer = false;
    expect(&config, NULL); /* not looked at */
    config.verify_peer = true;
    test_ca_revoke_last(ca, directory);
    expect(&config, NULL);
    write_file(directory, "ca-cert.pem", 0644, "nothing of the kind\n");
    expect(&config, "ca-cert.pem");
    write_file(directory, "ca-cert.pem", 0644, "");
    expect(&config, "ca-cert.pem");

    config.verify_peer = false;
    copy(directory, "other-key.pem", "server-key.pem");
    expect(&config, "server-cert.pem with server-key.pem");
    write_file(directory, "server-key.pem", 0600, "nothing of the kind\n");
    expect(&config, "server-cert.pem with server-key.pem");
    write_file(directory, "server-key.pem", 0604, "nothing of the kind\n");
    expect(&config, "server-key.pem holds secrets");

    copy(directory, "old-cert.pem", "server-cert.pem");
    copy(directory, "old-key.pem", "server-key.pem");
    log_set_sink(expect_warning, &warnings);
    expect(&config, NULL);
    ck_assert_uint_eq(warnings, 1);
    test_ca_free(ca);
    remove_directory(directory);
}
END_TEST

START_TEST(test_who_is_allowed)
{
    static const char *const allowed[] = {"alice", "psk:bob", "dn:CN=vm1,O=Example", "dn:odd"};
    char *directory = make_directory();
    char path[256];
    struct tls_config config = {.psk_file = path, .allowed = allowed, .allowed_count = 4};
    struct errtext err;
    struct tls *tls;
    snprintf(path, sizeof(path), "%s/keys", directory);
    write_file(directory, "keys", 0600, "alice:" KEY "\n");
    ck_assert_int_eq(tls_create(&tls, &config, &err), 0);
    ck_assert(tls_is_allowed(tls, "psk:alice"));
    ck_assert(tls_is_allowed(tls, "dn:alice"));
    ck_assert(tls_is_allowed(tls, "psk:bob"));
    ck_assert(!tls_is_allowed(tls, "dn:bob"));
    ck_assert(tls_is_allowed(tls, "dn:CN=vm1,O=Example"));
    ck_assert(!tls_is_allowed(tls, "psk:CN=vm1,O=Example"));
    ck_assert(!tls_is_allowed(tls, "dn:CN=vm1,O=Example,C=XX"));
    ck_assert(!tls_is_allowed(tls, "psk:dn:odd"));
    ck_assert(!tls_is_allowed(tls, "psk:Alice"));
    ck_assert(!tls_is_allowed(tls, NULL));
    tls_free(tls);
    config.allowed_count = 0;
    ck_assert_int_eq(tls_create(&tls, &config, &err), 0);
    ck_assert(tls_is_allowed(tls, NULL));
    ck_assert(tls_is_allowed(tls, "psk:anybody"));
    tls_free(tls);
    remove_directory(directory);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("tls");
    TCase *tcase = tcase_create("tls");
    tcase_set_timeout(tcase, 50);
    tcase_add_loop_test(tcase, test_psk_file, 0, (int)ARRAY_LEN(psk_cases));
    tcase_add_test(tcase, test_things_that_are_no_key_files);
    tcase_add_test(tcase, test_certificate_directory);
    tcase_add_test(tcase, test_who_is_allowed);
    suite_add_tcase(suite, tcase);
    return test_suite_run(suite);
}
