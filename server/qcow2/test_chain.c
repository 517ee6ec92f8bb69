/* SPDX-License-Identifier: BSD-2-Clause */
/* Backing names: what is relative to what, and what is no plain path. */
#include <check.h>
#include <errno.h>
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
    ck_assert_int_eq(backing_path_resolve(resolved[_i].image, resolved[_i].name, &path, &err), 0);
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
    int ret = backing_path_resolve("dir/disk.qcow2", refused[_i], &path, &err);
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

int main(void)
{
    Suite *suite = suite_create("chain");
    TCase *tcase = tcase_create("names");
    tcase_add_loop_test(tcase, resolves, 0, (int)(sizeof(resolved) / sizeof(resolved[0])));
    tcase_add_loop_test(tcase, refuses, 0, (int)(sizeof(refused) / sizeof(refused[0])));
    tcase_add_test(tcase, message_is_printable);
    tcase_add_test(tcase, length_is_bounded);
    suite_add_tcase(suite, tcase);
    return test_suite_run(suite);
}
