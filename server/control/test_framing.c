/* SPDX-License-Identifier: BSD-2-Clause */
/* Objects in any cut, and what is none. */
#include <string.h>

#include "base/testing.h"
#include "control/framing.h"

/* Takes text in pieces of `piece` bytes; says what it saw, a letter a result, and the objects. */
static const char *seen(const char *text, size_t piece, char *objects)
{
    static char results[64];
    struct framing framing = {0};
    size_t len = strlen(text), at = 0, count = 0;

    objects[0] = '\0';
    while (at < len) {
        size_t end = at + piece < len ? at + piece : len;
        while (at < end) {
            size_t taken, object_len;
            enum framing_result result =
                framing_take(&framing, text + at, end - at, &taken, &object_len);
            ck_assert(taken > 0 && object_len <= taken);
            strncat(objects, text + at + taken - object_len, object_len);
            at += taken;
            if (result == FRAMING_OBJECT) {
                strcat(objects, "|");
            }
            if (result != FRAMING_MORE) {
                results[count++] = "-osdl"[result];
            }
        }
    }
    results[count] = '\0';
    return results;
}

START_TEST(objects_are_found_in_any_cut)
{
    static const char text[] = " {\"a\": \"}\\\"{\"}{\"b\":[{},{}]}\r\n{}";
    char objects[256];

    for (size_t piece = 1; piece <= sizeof(text); piece++) {
        ck_assert_str_eq(seen(text, piece, objects), "ooo");
        ck_assert_str_eq(objects, "{\"a\": \"}\\\"{\"}|{\"b\":[{},{}]}|{}|");
    }
}
END_TEST

START_TEST(what_is_no_object_costs_its_line)
{
    char objects[256];

    for (size_t piece = 1; piece <= 40; piece++) {
        ck_assert_str_eq(seen("hello {}\n{\"c\":1}", piece, objects), "so");
        ck_assert_str_eq(objects, "{\"c\":1}|");
        ck_assert_str_eq(seen("]\n[1]\n{}", piece, objects), "sso");
    }
}
END_TEST

START_TEST(depth_and_length_are_bounded)
{
    static char text[CONTROL_OBJECT_BYTES_MAX + 64];
    static char objects[sizeof(text)];

    memset(text, 0, sizeof(text));
    text[0] = '{';
    memset(text + 1, '[', CONTROL_DEPTH_MAX - 1);
    ck_assert_str_eq(seen(text, 7, objects), "");
    text[CONTROL_DEPTH_MAX] = '{';
    strcat(text, "\n{}");
    ck_assert_str_eq(seen(text, 7, objects), "do");

    memset(text, 0, sizeof(text));
    memset(text, ' ', CONTROL_OBJECT_BYTES_MAX);
    text[0] = '{';
    text[CONTROL_OBJECT_BYTES_MAX - 1] = '}';
    ck_assert_str_eq(seen(text, 4096, objects), "o");
    memset(text, 'x', CONTROL_OBJECT_BYTES_MAX + 1);
    text[0] = '{';
    text[1] = '"';
    strcat(text, "\n{}");
    ck_assert_str_eq(seen(text, 4096, objects), "lo");
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("framing");
    TCase *tests = tcase_create("all");

    tcase_add_test(tests, objects_are_found_in_any_cut);
    tcase_add_test(tests, what_is_no_object_costs_its_line);
    tcase_add_test(tests, depth_and_length_are_bounded);
    suite_add_tcase(suite, tests);
    return test_suite_run(suite);
}
