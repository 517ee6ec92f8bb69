/* SPDX-License-Identifier: BSD-2-Clause */
/* What a "json:" backing name may describe, and how the rest is refused. */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/limits.h"
#include "base/testing.h"
#include "qcow2/json_name.h"

/* clang-format off: a row a line */
static const struct {
    const char *text;
    const char *path;
    enum backing_format format;
    enum backing_format said;
} taken[] = {
    {"{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\",\"filename\":\"/a/b\"}}", "/a/b",
     BACKING_FORMAT_QCOW2, BACKING_FORMAT_QCOW2},
    {"{'driver': 'raw', 'file': {'driver': 'host_device', 'filename': '/dev/sda'}}", "/dev/sda",
     BACKING_FORMAT_RAW, BACKING_FORMAT_RAW},
    {"{\"driver\":\"qcow2\",\"file.driver\":\"file\",\"file.filename\":\"a\"}", "a",
     BACKING_FORMAT_QCOW2, BACKING_FORMAT_QCOW2},
    {"{'driver':'qcow2','file':{'filename':'a'}}", "a", BACKING_FORMAT_QCOW2, BACKING_FORMAT_QCOW2},
    {"{'file.filename':'a'}", "a", BACKING_FORMAT_UNNAMED, BACKING_FORMAT_UNNAMED},
    {"{'driver':'file','filename':'a'}", "a", BACKING_FORMAT_RAW, BACKING_FORMAT_RAW},
    {"{'driver':'qcow2','file':{'driver':'raw','file':{'driver':'file','filename':'a'}}}", "a",
     BACKING_FORMAT_QCOW2, BACKING_FORMAT_QCOW2},
    {"{'driver':'raw','file':{'driver':'qcow2','file':{'driver':'file','filename':'a'}}}", "a",
     BACKING_FORMAT_QCOW2, BACKING_FORMAT_RAW},
    {"{'driver':'raw','file.file.filename':'a','file':{'driver':'raw'}}", "a", BACKING_FORMAT_RAW,
     BACKING_FORMAT_RAW},
    /* What changes nothing of what is read. */
    {"{'driver':'qcow2','node-name':'n','read-only':true,'discard':'unmap','l2-cache-size':1048576,"
     "'cache':{'direct':true,'no-flush':false},'overlap-check.template':'all',"
     "'encrypt':{'format':'luks','key-secret':'s'},'file':{'driver':'file','filename':'a',"
     "'aio':'io_uring','locking':'off','cache.direct':'on','auto-read-only':null}}",
     "a", BACKING_FORMAT_QCOW2, BACKING_FORMAT_QCOW2},
    /* Quotes and escapes, as QEMU reads them; names that look like something else. */
    {"{'driver':'raw','file':{'filename':'it\\'s \"x\"'}}", "it's \"x\"", BACKING_FORMAT_RAW,
     BACKING_FORMAT_RAW},
    {"{\"driver\":\"raw\",\"file\":{\"filename\":\"it\\'s {[ \\\"x\\\" \\u00e9\\\\\"}}",
     "it's {[ \"x\" \xc3\xa9\\", BACKING_FORMAT_RAW, BACKING_FORMAT_RAW},
    {"{'driver':'raw','file':{'filename':'nbd://host/x'}}", "nbd://host/x", BACKING_FORMAT_RAW,
     BACKING_FORMAT_RAW},
    {" { 'driver' : 'raw' , 'file' : { 'filename' : 'a' } } ", "a", BACKING_FORMAT_RAW,
     BACKING_FORMAT_RAW},
};

static const struct {
    const char *text;
    const char *mentions;
} refused[] = {
    {"", "broken"},
    {"{", "broken"},
    {"{}", "filename' is missing"},
    {"[]", "must be an object"},
    {"'raw'", "broken"},
    {"{'driver':'raw'", "broken"},
    {"{'driver':'raw','file':{'filename':'a'}} x", "broken"},
    {"{'driver':'raw','file':{'filename':'a}}", "broken"},
    {"{'driver':'raw','file':{'filename':'a\\", "broken"},
    {"{'driver':'raw','file':{'filename':'a\nb'}}", "broken"},
    {"{'driver':'raw','file':{'filename':'a\\u0000b'}}", "broken"},
    {"{'driver':'raw','file':{'filename':'a\xff'}}", "broken"},
    {"{'driver':'raw','driver':'qcow2','file':{'filename':'a'}}", "broken"},
    {"{'driver':'raw','file':{'filename':'a'},'file.filename':'b'}",
     "'file.filename' is given twice"},
    {"{'driver':7,'file':{'filename':'a'}}", "'driver' must be a string"},
    {"{'driver':'raw','file':{'driver':[],'filename':'a'}}", "'file.driver' must be a string"},
    {"{'driver':'raw','file':'node0'}", "not the name of a node"},
    {"{'driver':'raw','file':{}}", "must be an object that describes a file"},
    {"{'driver':'raw','file':{'filename':''}}", "'file.filename' is no path"},
    {"{'driver':'raw','file':{'filename':3}}", "'file.filename' is no path"},
    {"{'driver':'raw','file':{'driver':'file'}}", "'file.filename' is missing"},
    {"{'driver':'raw','filename':'a'}", "'filename'"},
    {"{'filename':'a'}", "'filename'"},
    {"{'driver':'file','file':{'filename':'a'}}", "'file.filename'"},
    /* Other drivers. */
    {"{'driver':'nbd','server':{'type':'inet','host':'h','port':'1'}}", "driver 'nbd'"},
    {"{'driver':'raw','file':{'driver':'nbd','server.type':'unix','server.path':'/s'}}",
     "driver 'nbd'"},
    {"{'driver':'qcow2','file':{'driver':'blkdebug','image':{}}}", "driver 'blkdebug'"},
    {"{'driver':'vmdk','file':{'filename':'a'}}", "driver 'vmdk'"},
    {"{'driver':'host_cdrom','filename':'/dev/sr0'}", "driver 'host_cdrom'"},
    {"{'driver':'x\\u001b[2J','filename':'a'}", "driver 'x\\x1b[2J'"},
    {"{'driver':'','filename':'a'}", "driver ''"},
    /* What would show other bytes. */
    {"{'driver':'raw','offset':512,'file':{'filename':'a'}}", "'offset'"},
    {"{'driver':'raw','size':'512','file.filename':'a'}", "'size'"},
    {"{'driver':'raw','backing':null,'file':{'filename':'a'}}", "'backing'"},
    {"{'driver':'raw','backing':{'driver':'raw','file.filename':'b'},'file':{'filename':'a'}}",
     "'backing.driver'"},
    {"{'driver':'qcow2','backing':'node0','file':{'filename':'a'}}", "not the name of a node"},
    {"{'driver':'qcow2','backing':false,'file':{'filename':'a'}}", "not the name of a node"},
    {"{'driver':'qcow2','backing':{'driver':'nbd'},'file':{'filename':'a'}}", "driver 'nbd'"},
    {"{'driver':'qcow2','backing':{'driver':'raw','offset':1,'file.filename':'b'},"
     "'file':{'filename':'a'}}",
     "'offset'"},
    {"{'driver':'qcow2','backing':{'driver':'qcow2'},'file':{'filename':'a'}}",
     "'backing.file.filename' is missing"},
    {"{'driver':'qcow2','backing.backing.backing':null,'backing.backing.driver':'raw',"
     "'backing.driver':'qcow2'}",
     "'backing'"},
    {"{'driver':'qcow2','data-file':{'filename':'b'},'file':{'filename':'a'}}",
     "'data-file.filename'"},
    {"{'driver':'raw','lazy-refcounts':true,'file':{'filename':'a'}}", "'lazy-refcounts'"},
    {"{'driver':'raw','file':{'filename':'a','x':1}}", "'x'"},
    {"{'driver':'raw','fil':1,'file':{'filename':'a'}}", "'fil'"},
    {"{'driver':'raw','cachet':1,'file':{'filename':'a'}}", "'cachet'"},
    {"{'driver':'qcow2','file':{'driver':'qcow2','file':{'filename':'a'}}}", "inside of another"},
    {"{'file':{'driver':'qcow2','file':{'filename':'a'}}}", "inside of another"},
    /* Deep. */
    {"{'a':{'a':{'a':{'a':{'a':{'a':{'a':{'a':{'a':{'a':{'a':{'a':{'a':{'a':{'a':{'a':{}}}}}}}}}}}}"
     "}}"
     "}}}}",
     "16 levels"},
    {"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[", "16 levels"},
    {"{'a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a':1}", "16 levels"},
};
/* clang-format on */

START_TEST(reads)
{
    struct json_name *json;
    struct errtext err = {""};
    int ret = json_name_read(taken[_i].text, &json, &err);
    ck_assert_msg(ret == 0, "%s: %s", taken[_i].text, err.text);
    ck_assert_str_eq(json->path, taken[_i].path);
    ck_assert_int_eq((int)json->format, (int)taken[_i].format);
    ck_assert_int_eq((int)json->said, (int)taken[_i].said);
    ck_assert(!json->below_given);
    json_name_free(json);
}
END_TEST

START_TEST(refuses)
{
    struct json_name *json = NULL;
    struct errtext err = {""};
    ck_assert_int_eq(json_name_read(refused[_i].text, &json, &err), -EINVAL);
    ck_assert_msg(strstr(err.text, refused[_i].mentions) != NULL, "%s: %s", refused[_i].text,
                  err.text);
    ck_assert_ptr_null(json);
}
END_TEST

START_TEST(length_is_bounded)
{
    char text[LIMIT_BACKING_NAME_BYTES + 2];
    struct json_name *json;
    struct errtext err;
    memset(text, ' ', sizeof(text));
    memcpy(text, "{'driver':'raw','file.filename':'a'}", 36);
    text[LIMIT_BACKING_NAME_BYTES + 1] = '\0';
    ck_assert_int_eq(json_name_read(text, &json, &err), -EINVAL);
    ck_assert_ptr_nonnull(strstr(err.text, "1024 bytes; at most 1023"));
    text[LIMIT_BACKING_NAME_BYTES] = '\0';
    ck_assert_int_eq(json_name_read(text, &json, &err), 0);
    json_name_free(json);
}
END_TEST

START_TEST(layers_are_bounded_by_the_length)
{
    char text[LIMIT_BACKING_NAME_BYTES + 1] = "{'driver':'raw'";
    char prefix[200] = "";
    struct json_name *json;
    struct errtext err;
    for (unsigned i = 0; i < 9; i++) {
        size_t len = strlen(text);
        strcat(prefix, "file.");
        snprintf(text + len, sizeof(text) - len, ",'%sdriver':'raw'", prefix);
    }
    size_t len = strlen(text);
    snprintf(text + len, sizeof(text) - len, ",'%sfile.filename':'a'}", prefix);
    ck_assert_int_eq(json_name_read(text, &json, &err), 0);
    ck_assert_str_eq(json->path, "a");
    json_name_free(json);
    strcpy(text + len, "}");
    ck_assert_int_eq(json_name_read(text, &json, &err), -EINVAL);
    ck_assert_ptr_nonnull(strstr(err.text, "is missing"));
}
END_TEST

/* As a commit job left it: the chain of three files, in one name. */
START_TEST(reads_what_is_below)
{
    static const char text[] =
        "{\"backing\": {\"backing\": {\"driver\": \"raw\", \"file\": {\"driver\": \"file\", "
        "\"filename\": \"/c\"}}, \"driver\": \"qcow2\", \"file\": {\"driver\": \"file\", "
        "\"filename\": \"/b\"}}, \"driver\": \"qcow2\", \"file\": {\"driver\": \"file\", "
        "\"filename\": \"/a\"}}";
    struct json_name *json;
    struct errtext err = {""};
    int ret = json_name_read(text, &json, &err);
    ck_assert_msg(ret == 0, "%s", err.text);
    ck_assert_str_eq(json->path, "/a");
    ck_assert(json->below_given);
    ck_assert_str_eq(json->below->path, "/b");
    ck_assert_int_eq((int)json->below->format, (int)BACKING_FORMAT_QCOW2);
    ck_assert(json->below->below_given);
    ck_assert_str_eq(json->below->below->path, "/c");
    ck_assert_int_eq((int)json->below->below->format, (int)BACKING_FORMAT_RAW);
    ck_assert(!json->below->below->below_given);
    json_name_free(json);
}
END_TEST

START_TEST(reads_that_nothing_is_below)
{
    struct json_name *json;
    struct errtext err;
    ck_assert_int_eq(
        json_name_read("{'driver':'qcow2','backing':null,'file.filename':'a'}", &json, &err), 0);
    ck_assert(json->below_given);
    ck_assert_ptr_null(json->below);
    json_name_free(json);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("json_name");
    TCase *tcase = tcase_create("names");
    tcase_add_loop_test(tcase, reads, 0, (int)ARRAY_LEN(taken));
    tcase_add_loop_test(tcase, refuses, 0, (int)ARRAY_LEN(refused));
    tcase_add_test(tcase, reads_what_is_below);
    tcase_add_test(tcase, reads_that_nothing_is_below);
    tcase_add_test(tcase, length_is_bounded);
    tcase_add_test(tcase, layers_are_bounded_by_the_length);
    suite_add_tcase(suite, tcase);
    return test_suite_run(suite);
}
