/* SPDX-License-Identifier: BSD-2-Clause */
/* Backing names: what is relative to what, and what is no plain path. */
#include <check.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "base/testing.h"
#include "qcow2/chain.h"

static const struct {
    const char *image;
    const char *name;
    const char *path;
} resolved[] = {
    {"disk.qcow2", "base.qcow2", "base.qcow2"},
    {"/images/disk.qcow2", "base.qcow2", "/images/base.qcow2"},
    {"/images/disk.qcow2", "../base.raw", "/images/../base.raw"},
    {"a/b/disk.qcow2", "c/base.raw", "a/b/c/base.raw"},
    {"/disk.qcow2", "base.raw", "/base.raw"},
    {"/images/disk.qcow2", "/other/base.raw", "/other/base.raw"},
    {"a/disk.qcow2", "./odd:name", "a/./odd:name"},
    {"a/disk.qcow2", "/odd:name", "/odd:name"},
    {"a/disk.qcow2", "sub/odd:name", "a/sub/odd:name"},
    {"nbd:x/disk.qcow2", "base", "nbd:x/base"},
    {"a/disk.qcow2", "file:base.raw", "base.raw"},
    {"a/disk.qcow2", "file:/x/base.raw", "/x/base.raw"},
    {"a/disk.qcow2", "file:///x/base.raw", "///x/base.raw"},
    {"a/disk.qcow2", "file:json:x", "json:x"},
    {"a/disk.qcow2", "fileserver", "a/fileserver"},
    {"a/disk.qcow2", "-b", "a/-b"},
    {"a/disk.qcow2", "file", "a/file"},
};

START_TEST(resolves)
{
    char *path = NULL;
    struct errtext err;
    ck_assert_int_eq(
        plain_path_resolve("backing file", resolved[_i].image, resolved[_i].name, &path, &err), 0);
    ck_assert_str_eq(path, resolved[_i].path);
    free(path);
}
END_TEST

static const char *const refused[] = {
    "nbd://host/export",
    "nbd:unix:/run/s",
    "json:{\"driver\":\"raw\"}",
    "http://x/y",
    "fat:rw:/",
    "fat:",
    "host_device:/dev/sda",
    ":",
    ":/x",
    "c:base",
    "File:base",
    "",
    "file:",
};

START_TEST(refuses)
{
    struct errtext err = {""};
    char *path = NULL;
    int ret = plain_path_resolve("backing file", "dir/disk.qcow2", refused[_i], &path, &err);
    ck_assert_int_eq(ret, -EINVAL);
    ck_assert_ptr_null(path);
    ck_assert_ptr_nonnull(strstr(err.text, "dir/disk.qcow2: backing file"));
}
END_TEST

START_TEST(message_is_printable)
{
    struct errtext err;
    ck_assert_int_eq(backing_name_check("x\x1b[2J\n:", &err), -EINVAL);
    ck_assert_ptr_nonnull(strstr(err.text, "x\\x1b[2J\\x0a:"));
}
END_TEST

START_TEST(length_is_bounded)
{
    char name[LIMIT_BACKING_NAME_BYTES + 2];
    struct errtext err;
    memset(name, 'a', sizeof(name));
    name[LIMIT_BACKING_NAME_BYTES] = '\0';
    ck_assert_int_eq(backing_name_check(name, &err), 0);
    name[LIMIT_BACKING_NAME_BYTES] = 'a';
    name[LIMIT_BACKING_NAME_BYTES + 1] = '\0';
    ck_assert_int_eq(backing_name_check(name, &err), -EINVAL);
}
END_TEST

#define AT_BASE "'file':{'driver':'file','filename':'/x/base'}}"

static const struct {
    const char *name;
    const char *named; /* by the header */
    enum backing_format assumed;
    const char *path;
    enum backing_format format;
    bool format_assumed;
} described[] = {
    {"base", "raw", BACKING_FORMAT_UNNAMED, "a/base", BACKING_FORMAT_RAW, false},
    {"base", "qcow2", BACKING_FORMAT_RAW, "a/base", BACKING_FORMAT_QCOW2, false},
    {"base", NULL, BACKING_FORMAT_RAW, "a/base", BACKING_FORMAT_RAW, true},
    {"base", NULL, BACKING_FORMAT_QCOW2, "a/base", BACKING_FORMAT_QCOW2, true},
    {"json:{'driver':'qcow2'," AT_BASE, "qcow2", BACKING_FORMAT_UNNAMED, "/x/base",
     BACKING_FORMAT_QCOW2, false},
    {"json:{'driver':'qcow2'," AT_BASE, NULL, BACKING_FORMAT_RAW, "/x/base", BACKING_FORMAT_QCOW2,
     false},
    {"json:{" AT_BASE, "raw", BACKING_FORMAT_QCOW2, "/x/base", BACKING_FORMAT_RAW, false},
    {"json:{" AT_BASE, NULL, BACKING_FORMAT_QCOW2, "/x/base", BACKING_FORMAT_QCOW2, true},
    /* Not beside the image. */
    {"json:{'driver':'raw','file.filename':'base'}", "raw", BACKING_FORMAT_UNNAMED, "base",
     BACKING_FORMAT_RAW, false},
    /* The header agrees with what is outermost. */
    {"json:{'driver':'raw','file':{'driver':'qcow2'," AT_BASE "}", "raw", BACKING_FORMAT_UNNAMED,
     "/x/base", BACKING_FORMAT_QCOW2, false},
};

START_TEST(resolves_with_a_format)
{
    struct backing_file file;
    struct errtext err = {""};
    int ret = backing_resolve("a/disk.qcow2", described[_i].name, described[_i].named,
                              described[_i].assumed, &file, &err);
    ck_assert_msg(ret == 0, "%s: %s", described[_i].name, err.text);
    ck_assert_str_eq(file.path, described[_i].path);
    ck_assert_int_eq((int)file.format, (int)described[_i].format);
    ck_assert(file.format_assumed == described[_i].format_assumed);
    ck_assert_int_eq(backing_name_check(described[_i].name, &err), 0);
    backing_file_free(&file);
}
END_TEST

static const struct {
    const char *name;
    const char *named;
    int ret;
    const char *mentions;
} undescribed[] = {
    {"base", NULL, -EINVAL, "--backing-format"},
    {"json:{" AT_BASE, NULL, -EINVAL, "--backing-format"},
    {"base", "vmdk", -ENOTSUP, "format is 'vmdk': allowed are qcow2 and raw"},
    {"base", "", -ENOTSUP, "format is ''"},
    {"json:{'driver':'qcow2'," AT_BASE, "raw", -EINVAL, "raw, and its json: name says qcow2"},
    {"json:{'driver':'file','filename':'x'}", "qcow2", -EINVAL, "must agree"},
    {"json:{'driver':'nbd'}", "raw", -EINVAL, "backing file \"json:{'driver':'nbd'}\": it names"},
    {"nbd:x", "raw", -EINVAL, "names a protocol"},
};

START_TEST(refuses_without_a_format)
{
    struct backing_file file = {0};
    struct errtext err = {""};
    int ret = backing_resolve("a/disk.qcow2", undescribed[_i].name, undescribed[_i].named,
                              BACKING_FORMAT_UNNAMED, &file, &err);
    ck_assert_int_eq(ret, undescribed[_i].ret);
    ck_assert_msg(strstr(err.text, undescribed[_i].mentions) != NULL, "%s", err.text);
    ck_assert_ptr_eq(strstr(err.text, "a/disk.qcow2: "), err.text);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("chain");
    TCase *tcase = tcase_create("names");
    tcase_add_loop_test(tcase, resolves, 0, (int)(sizeof(resolved) / sizeof(resolved[0])));
    tcase_add_loop_test(tcase, refuses, 0, (int)(sizeof(refused) / sizeof(refused[0])));
    tcase_add_loop_test(tcase, resolves_with_a_format, 0,
                        (int)(sizeof(described) / sizeof(described[0])));
    tcase_add_loop_test(tcase, refuses_without_a_format, 0,
                        (int)(sizeof(undescribed) / sizeof(undescribed[0])));
    tcase_add_test(tcase, message_is_printable);
    tcase_add_test(tcase, length_is_bounded);
    suite_add_tcase(suite, tcase);
    return test_suite_run(suite);
}
