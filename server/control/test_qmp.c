/* SPDX-License-Identifier: BSD-2-Clause */
/* What clients may say, and how they are answered. */
#include <string.h>

#include "base/check.h"
#include "base/testing.h"
#include "control/qmp.h"

static json_t *load(const char *text)
{
    json_t *value = json_loads(text, 0, NULL);
    ck_assert_msg(value != NULL, "%s", text);
    return value;
}

static void expect(json_t *line, const char *text)
{
    json_t *expected = load(text);
    ck_assert(line != NULL);
    ck_assert_msg(json_equal(line, expected), "%s instead of %s", json_dumps(line, 0), text);
    json_decref(line);
    json_decref(expected);
}

START_TEST(commands_are_taken_apart)
{
    struct qmp_command command;
    struct qmp_error error;
    json_t *said = load("{\"execute\": \"a\", \"arguments\": {\"b\": 1}, \"id\": [2]}");
    ck_assert_int_eq(qmp_parse(said, &command, &error), 0);
    ck_assert_str_eq(command.name, "a");
    ck_assert_int_eq(json_integer_value(json_object_get(command.arguments, "b")), 1);
    expect(qmp_return(NULL, command.id), "{\"return\": {}, \"id\": [2]}");
    json_decref(said);

    static const struct {
        const char *text, *desc;
    } bad[] = {
        {"{}", "QMP input lacks member 'execute'"},
        {"{\"id\": 5}", "QMP input lacks member 'execute'"},
        {"{\"execute\": 5}", "QMP input member 'execute' must be a string"},
        {"{\"execute\": \"a\", \"arguments\": []}",
         "QMP input member 'arguments' must be an object"},
        {"{\"exec-oob\": \"a\"}", "QMP input member 'exec-oob' is unexpected"},
    };
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        said = load(bad[i].text);
        ck_assert_int_eq(qmp_parse(said, &command, &error), -1);
        ck_assert_str_eq(error.desc, bad[i].desc);
        ck_assert((command.id != NULL) == (strstr(bad[i].text, "id\":") != NULL));
        json_decref(said);
    }
}
END_TEST

START_TEST(words_are_qmps)
{
    struct qmp_error error = {QMP_COMMAND_NOT_FOUND, "no"};
    json_t *greeting = qmp_greeting();
    json_t *version = json_object_get(json_object_get(greeting, "QMP"), "version");
    ck_assert(json_is_integer(json_object_get(json_object_get(version, "qemu"), "major")));
    ck_assert(json_is_string(json_object_get(version, "package")));
    ck_assert(json_is_array(json_object_get(json_object_get(greeting, "QMP"), "capabilities")));
    json_decref(greeting);
    expect(qmp_error_reply(&error, NULL),
           "{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"no\"}}");
    json_t *data = load("{\"id\": \"x\"}");
    expect(qmp_event("GONE", data, 5, 6), "{\"event\": \"GONE\", \"data\": {\"id\": \"x\"},"
                                          " \"timestamp\": {\"seconds\": 5, \"microseconds\": 6}}");
    expect(qmp_return(data, data), "{\"return\": {\"id\": \"x\"}, \"id\": {\"id\": \"x\"}}");
    json_decref(data);
}
END_TEST

START_TEST(arguments_are_checked)
{
    static const struct qmp_argument known[] = {
        {"name", JSON_STRING, false}, {"flag", JSON_TRUE, true}, {"list", JSON_ARRAY, true}};
    static const struct {
        const char *text, *desc; /* NULL: good */
    } cases[] = {
        {"{\"name\": \"a\"}", NULL},
        {"{\"name\": \"a\", \"flag\": false, \"list\": []}", NULL},
        {"{}", "Parameter 'name' is missing"},
        {"{\"name\": 5}", "Invalid parameter type for 'name', expected: string"},
        {"{\"name\": \"a\", \"flag\": 1}", "Invalid parameter type for 'flag', expected: boolean"},
        {"{\"name\": \"a\", \"list\": {}}", "Invalid parameter type for 'list', expected: array"},
        {"{\"name\": \"a\", \"more\": 1}", "Parameter 'more' is unexpected"},
    };
    struct qmp_error error;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        json_t *arguments = load(cases[i].text);
        int result = qmp_check_arguments(arguments, known, 3, &error);
        ck_assert_int_eq(result, cases[i].desc ? -1 : 0);
        if (cases[i].desc) {
            ck_assert_str_eq(error.desc, cases[i].desc);
        }
        json_decref(arguments);
    }
    ck_assert_int_eq(qmp_check_arguments(NULL, known, 3, &error), -1);
    ck_assert_int_eq(qmp_check_arguments(NULL, NULL, 0, &error), 0);
    ck_assert(qmp_bool(NULL, "flag", true) && !qmp_bool(NULL, "flag", false));
    ck_assert_ptr_null(qmp_string(NULL, "name"));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("qmp");
    TCase *tests = tcase_create("all");

    tcase_add_test(tests, commands_are_taken_apart);
    tcase_add_test(tests, words_are_qmps);
    tcase_add_test(tests, arguments_are_checked);
    suite_add_tcase(suite, tests);
    return test_suite_run(suite);
}
