/* SPDX-License-Identifier: BSD-2-Clause */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/limits.h"
#include "base/testing.h"
#include "config/export_config.h"

static struct export_config made(void)
{
    struct export_config config;
    ck_assert_int_eq(export_config_init(&config), 0);
    return config;
}

static void set(struct export_config *config, const char *field, const char *value)
{
    struct errtext err = {.text = ""};
    ck_assert_msg(export_config_set(config, field, field, value, &err) == 0, "%s", err.text);
}

START_TEST(every_field_counts_for_equality)
{
    static const char *const settings[][2] = {
        {"name", "vm1"},
        {"image", "/disks/vm1.qcow2"},
        {"description", "the first"},
        {"read-only", "true"},
        {"discard", "ignore"},
        {"cache", "none"},
        {"backing-format", "qcow2"},
        {"snapshot", "yesterday"},
        {"key-file", "/keys/vm1"},
        {"key-file", "credential:base"},
        {"tls", "require"},
        {"allow", "10.0.0.0/8"},
        {"tls-allow", "psk:alice"},
        {"bytes-per-second", "100M"},
        {"operations-per-second", "5000"},
    };
    struct export_config grown = made();
    for (size_t i = 0; i < ARRAY_LEN(settings); i++) {
        struct export_config before, after;
        ck_assert_int_eq(export_config_copy(&before, &grown), 0);
        ck_assert(export_config_equal(&before, &grown));
        set(&grown, settings[i][0], settings[i][1]);
        ck_assert_msg(!export_config_equal(&before, &grown), "%s", settings[i][0]);
        ck_assert_int_eq(export_config_copy(&after, &grown), 0);
        ck_assert(export_config_equal(&after, &grown));
        export_config_free(&before);
        export_config_free(&after);
    }
    ck_assert_uint_eq(grown.bytes_per_second, 100 * MIB);
    ck_assert_uint_eq(grown.operations_per_second, 5000);
    ck_assert(grown.read_only && grown.direct && grown.trim == TRIM_IGNORE && grown.tls_only);
    struct errtext why;
    ck_assert_int_eq(export_config_set(&grown, "read-only", "read-only", "false", &why), -EINVAL);
    free(grown.snapshot);
    grown.snapshot = NULL;
    set(&grown, "read-only", "false");
    set(&grown, "discard", "unmap");
    set(&grown, "cache", "writeback");
    set(&grown, "tls", "on");
    set(&grown, "bytes-per-second", "0");
    ck_assert(!grown.read_only && !grown.direct && grown.trim == TRIM_UNMAP && !grown.tls_only);
    export_config_free(&grown);
}
END_TEST

START_TEST(bad_values_are_named)
{
    static char long_name[LIMIT_NBD_STRING_BYTES + 2];
    static const struct {
        const char *field;
        const char *value;
        const char *says;
    } cases[] = {
        {"name", "\xff", "UTF-8"},
        {"name", "\xed\xa0\x80", "UTF-8"},
        {"name", "\xc0\x80", "UTF-8"},
        {"name", "\xf4\x90\x80\x80", "UTF-8"},
        {"name", "\xe2\x82", "UTF-8"},
        {"name", long_name, "at most 4096"},
        {"description", long_name, "at most 4096"},
        {"description", "\x80", "UTF-8"},
        {"image", "", "path"},
        {"read-only", "maybe", "read-only 'maybe': must be true or false"},
        {"discard", "off", "must be unmap or ignore"},
        {"backing-format", "vmdk", "must be raw or qcow2"},
        {"backing-format", "", "must be raw or qcow2"},
        {"cache", "unsafe", "must be writeback or none"},
        {"tls", "off", "require"},
        {"snapshot", "", "internal snapshot"},
        {"key-file", "", "must be a path"},
        {"key-file", "fd:", "descriptor"},
        {"key-file", "fd:1x", "descriptor"},
        {"key-file", "credential:", "credential"},
        {"key-file", "credential:../x", "credential"},
        {"allow", "everybody", "allow 'everybody': must be unix"},
        {"tls-allow", "", "tls-allow"},
        {"bytes-per-second", "fast", "bytes-per-second 'fast'"},
        {"bytes-per-second", "-1", "must be a size"},
        {"bytes-per-second", "65G", "must be a size"},
        {"bytes-per-second", "1", "must be a size"},
        {"operations-per-second", "", "must be a number"},
        {"operations-per-second", "10000001", "10000000"},
        {"operations-per-second", "18446744073709551617", "10000000"},
        {"colour", "blue", "no 'colour'"},
    };
    struct export_config config = made();
    memset(long_name, 'n', sizeof(long_name) - 1);
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct errtext err = {.text = ""};
        ck_assert_int_lt(
            export_config_set(&config, cases[i].field, cases[i].field, cases[i].value, &err), 0);
        ck_assert_msg(strstr(err.text, cases[i].says) != NULL, "%s: %s", cases[i].field, err.text);
    }
    struct export_config fresh = made();
    ck_assert(export_config_equal(&config, &fresh));
    long_name[LIMIT_NBD_STRING_BYTES] = '\0';
    set(&config, "name", long_name);
    set(&config, "name", "\xc3\xa4\xe2\x82\xac\xf0\x9f\x92\xbe");
    export_config_free(&config);
    export_config_free(&fresh);
}
END_TEST

static void add(struct export_configs *configs, const char *name, const char *field,
                const char *value)
{
    struct export_config config = made();
    struct errtext err;
    set(&config, "name", name);
    set(&config, "image", "/image");
    if (field) {
        set(&config, field, value);
    }
    ck_assert_int_eq(export_configs_add(configs, &config, &err), 0);
}

START_TEST(exports_must_fit_together_and_into_the_server)
{
    struct export_surroundings plain = {0};
    struct export_surroundings psk = {.tls = true};
    struct export_surroundings certificates = {.tls = true, .certificates = true};
    struct export_surroundings verified = {.tls = true, .certificates = true, .verify_peer = true};
    struct export_configs configs = {0};
    struct errtext err;
    ck_assert_int_eq(export_configs_check(&configs, &plain, &err), 0);
    add(&configs, "one", NULL, NULL);
    add(&configs, "", NULL, NULL);
    ck_assert_int_eq(export_configs_check(&configs, &plain, &err), 0);
    add(&configs, "one", NULL, NULL);
    ck_assert_int_eq(export_configs_check(&configs, &plain, &err), -EINVAL);
    ck_assert(strstr(err.text, "the name 'one'") != NULL);
    export_configs_free(&configs);

    add(&configs, "safe", "tls", "require");
    ck_assert_int_eq(export_configs_check(&configs, &plain, &err), -EINVAL);
    ck_assert(strstr(err.text, "export 'safe': tls require needs") != NULL);
    ck_assert_int_eq(export_configs_check(&configs, &psk, &err), 0);
    ck_assert_int_eq(export_configs_check(&configs, &certificates, &err), 0);
    export_configs_free(&configs);

    add(&configs, "named", "tls-allow", "psk:alice");
    ck_assert_int_eq(export_configs_check(&configs, &plain, &err), -EINVAL);
    ck_assert_int_eq(export_configs_check(&configs, &psk, &err), 0);
    ck_assert_int_eq(export_configs_check(&configs, &certificates, &err), -EINVAL);
    ck_assert(strstr(err.text, "--tls-verify-peer") != NULL);
    ck_assert_int_eq(export_configs_check(&configs, &verified, &err), 0);
    export_configs_free(&configs);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("export_config");
    TCase *tcase = tcase_create("export_config");
    tcase_add_test(tcase, every_field_counts_for_equality);
    tcase_add_test(tcase, bad_values_are_named);
    tcase_add_test(tcase, exports_must_fit_together_and_into_the_server);
    suite_add_tcase(suite, tcase);
    return test_suite_run(suite);
}
