/* SPDX-License-Identifier: BSD-2-Clause */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/check.h"
#include "base/limits.h"
#include "base/testing.h"
#include "config/config_file.h"

static char directory[] = "/tmp/qcowd-config-XXXXXX";
static char path[sizeof(directory) + 16];

static void write_file(const void *text, size_t len)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(write(fd, text, len), (ssize_t)len);
    close(fd);
}

static int parse(const char *text, struct export_configs *configs, struct errtext *err)
{
    err->text[0] = '\0';
    write_file(text, strlen(text));
    return config_file_read(path, configs, err);
}

START_TEST(every_key)
{
    struct export_configs configs;
    struct errtext err;
    int result = parse("# two disks\n"
                       "export \"vm1\" {\n"
                       "    image = \"disks/vm1.qcow2\"\n"
                       "    description = \"the first\"\n"
                       "    read-only = true\n"
                       "    discard = ignore\n"
                       "    cache = none\n"
                       "    backing-format = raw\n"
                       "    tls = require\n"
                       "    allow = { \"10.0.0.0/8\", \"unix\", \"user:root\" }\n"
                       "    tls-allow = { \"dn:CN=vm1\" }\n"
                       "    tls-allow += { \"psk:alice\" }\n"
                       "    bytes-per-second = \"100M\"\n"
                       "    operations-per-second = 5000\n"
                       "}\n"
                       "export \"\" { image = /disks/default.qcow2 }\n",
                       &configs, &err);
    ck_assert_msg(result == 0, "%s", err.text);
    ck_assert_uint_eq(configs.count, 2);
    const struct export_config *one = &configs.list[0];
    char image[128];
    snprintf(image, sizeof(image), "%s/disks/vm1.qcow2", directory);
    ck_assert_str_eq(one->name, "vm1");
    ck_assert_str_eq(one->image, image);
    ck_assert_str_eq(one->description, "the first");
    ck_assert(one->read_only && one->direct && one->trim == TRIM_IGNORE && one->tls_only);
    ck_assert_int_eq((int)one->backing_format, (int)BACKING_FORMAT_RAW);
    ck_assert_uint_eq(one->access.origin_count, 3);
    ck_assert_uint_eq(one->access.identity_count, 2);
    ck_assert_uint_eq(one->bytes_per_second, 100 * MIB);
    ck_assert_uint_eq(one->operations_per_second, 5000);
    ck_assert_str_eq(configs.list[1].name, "");
    ck_assert_str_eq(configs.list[1].image, "/disks/default.qcow2");
    ck_assert(!configs.list[1].read_only && configs.list[1].access.origin_count == 0);
    export_configs_free(&configs);
}
END_TEST

START_TEST(what_is_wrong_is_said_with_its_line)
{
    static const struct {
        const char *text;
        const char *says;
    } cases[] = {
        {"", ": there is no export in it"},
        {"# nothing\n", ": there is no export in it"},
        {"export \"a\" {\n}\n", ":2: export 'a': the image is missing"},
        {"export \"a\" { image = \"x\"\n colour = blue }",
         ":2: export 'a': no such option 'colour'"},
        {"export \"a\" {\n image = \"x\"\n read-only = maybe\n}",
         ":3: export 'a': read-only 'maybe': must be true or false"},
        {"export \"a\" { image = \"x\" }\nexport \"a\" { image = \"y\" }", ":2: found duplicate"},
        {"export { image = \"x\" }", ":1: missing title"},
        {"export \"a\" { image = \"x\"\n image = \"y\" }", ":2: export 'a': image is given twice"},
        {"export \"a\" { image = \"\" }", ":1: export 'a': image '': must be the path"},
        {"export \"a\" { image = x allow = { \"10.0.0.1\",\n \"user:no-such-user\" } }",
         ":2: export 'a': allow 'user:no-such-user': this machine has no such user"},
        {"export \"\xff\" { image = x }", ":1: export '\\xff': name '\\xff': must be UTF-8"},
        {"include(\"/etc/hostname\")\n", ":1: no such option 'include'"},
        {"export \"a\" { image = x tls = off }", "must be on (as the server has it) or require"},
        {"export \"a\" { image = { x } }", ":1: "},
        /* Cut anywhere, it is no shorter file, but none. */
        {"export \"a\" { image = \"x\"", "the section is not closed"},
        {"export \"a\" { image = \"x\"\n /* }", "the middle of a comment"},
        {"export \"a\" { image = \"x\" }\n /* more", "the middle of a comment"},
        {"export \"a\" { image = \"x", ": "},
        {"export \"a\" { image =", ": "},
        {"export \"a\"", ": "},
        {"export", ": "},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct export_configs configs;
        struct errtext err;
        ck_assert_int_lt(parse(cases[i].text, &configs, &err), 0);
        ck_assert_ptr_null(configs.list);
        ck_assert_msg(strncmp(err.text, path, strlen(path)) == 0, "%s", err.text);
        ck_assert_msg(strstr(err.text, cases[i].says) != NULL, "case %zu: %s", i, err.text);
        ck_assert_msg(!strchr(err.text, '\n'), "more than one line: %s", err.text);
    }
}
END_TEST

START_TEST(every_cut_of_a_file_is_refused)
{
    static const char text[] = "export \"a\" { image = \"x\" allow = { \"unix\", \"10.0.0.0/8\" } "
                               "read-only = true }";
    for (size_t len = 0; len < sizeof(text) - 1; len++) {
        struct export_configs configs;
        struct errtext err;
        write_file(text, len);
        ck_assert_msg(config_file_read(path, &configs, &err) < 0, "cut at %zu", len);
    }
}
END_TEST

START_TEST(what_is_no_file_of_text)
{
    struct export_configs configs;
    struct errtext err;
    write_file("export\0", 7);
    ck_assert_int_lt(config_file_read(path, &configs, &err), 0);
    ck_assert(strstr(err.text, "NUL") != NULL);
    unlink(path);
    ck_assert_int_lt(config_file_read(path, &configs, &err), 0);
    ck_assert(strstr(err.text, "No such file") != NULL);
    ck_assert_int_eq(mkfifo(path, 0600), 0);
    ck_assert_int_lt(config_file_read(path, &configs, &err), 0);
    ck_assert(strstr(err.text, "regular file") != NULL);
    unlink(path);
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    ck_assert_int_eq(ftruncate(fd, 5 << 20), 0);
    close(fd);
    ck_assert_int_lt(config_file_read(path, &configs, &err), 0);
    ck_assert(strstr(err.text, "at most") != NULL);
    ck_assert_int_lt(config_file_read(directory, &configs, &err), 0);
}
END_TEST

START_TEST(garbage)
{
    uint32_t state = 1;
    for (unsigned round = 0; round < 500; round++) {
        static const char words[][12] = {
            "export ", "\"a\" ", "{ ", "} ",  "image ", "= ", "x ", "allow ", "\n",    "/* ",
            "*/ ",     "\" ",    "' ", "+= ", "( ",     ") ", ", ", "unix ",  "\x01 ", "\xff"};
        struct export_configs configs;
        struct errtext err;
        char text[256] = "";
        for (unsigned i = 0; i < 20; i++) {
            state = state * 1103515245 + 12345;
            strcat(text, words[(state >> 16) % ARRAY_LEN(words)]);
        }
        if (parse(text, &configs, &err) == 0) {
            export_configs_free(&configs);
        }
    }
}
END_TEST

int main(void)
{
    if (!mkdtemp(directory)) {
        return EXIT_FAILURE;
    }
    snprintf(path, sizeof(path), "%s/qcowd.conf", directory);
    Suite *suite = suite_create("config_file");
    TCase *tcase = tcase_create("config_file");
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, every_key);
    tcase_add_test(tcase, what_is_wrong_is_said_with_its_line);
    tcase_add_test(tcase, every_cut_of_a_file_is_refused);
    tcase_add_test(tcase, what_is_no_file_of_text);
    tcase_add_test(tcase, garbage);
    suite_add_tcase(suite, tcase);
    int status = test_suite_run(suite);
    unlink(path);
    rmdir(directory);
    return status;
}
