/* SPDX-License-Identifier: BSD-2-Clause */
/* What the service manager hears, from a socket that plays its part. */
#include "io/testing.h"

#include <sys/socket.h>
#include <sys/un.h>

#include "base/log.h"
#include "io/world.h"
#include "io/world_real.h"
#include "service/notify.h"

#define MS_NS 1000000ULL

static int manager;

static void make_manager(const char *path, bool abstract)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t len = strlen(path);
    ck_assert_uint_lt(len, sizeof(address.sun_path));
    memcpy(address.sun_path, path, len);
    address.sun_path[0] = abstract ? '\0' : path[0];
    manager = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    ck_assert_int_eq(bind(manager, (struct sockaddr *)&address,
                          (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len)),
                     0);
    setenv("NOTIFY_SOCKET", path, 1);
}

/* The next datagram, or an empty text. */
static const char *heard(void)
{
    static char text[1000];
    ssize_t len = recv(manager, text, sizeof(text) - 1, 0);
    text[len < 0 ? 0 : len] = '\0';
    return text;
}

static void co_life(void *arg)
{
    struct notify notify;
    struct world *world = world_real_create(test_loop);
    (void)arg;

    setenv("WATCHDOG_USEC", "40000", 1);
    notify_open(&notify);
    ck_assert_ptr_null(getenv("NOTIFY_SOCKET"));
    ck_assert_ptr_null(getenv("WATCHDOG_USEC"));
    notify_start(&notify, test_loop);
    ck_assert_str_eq(heard(), "WATCHDOG=1");
    notify_ready(&notify, "Serving a\nMAINPID=1");
    ck_assert_str_eq(heard(), "READY=1\nSTATUS=Serving a\\x0aMAINPID=1");
    co_sleep_ns(world, 90 * MS_NS);
    ck_assert_str_eq(heard(), "WATCHDOG=1");
    ck_assert_str_eq(heard(), "WATCHDOG=1");
    while (*heard()) {
    }
    notify_reloading(&notify);
    ck_assert_int_eq(strncmp(heard(), "RELOADING=1\nMONOTONIC_USEC=", 26), 0);
    notify_stopping(&notify, 0);
    ck_assert_ptr_nonnull(strstr(heard(), "STOPPING=1\nEXTEND_TIMEOUT_USEC=60000000\nSTATUS="));
    notify_close(&notify);
    co_sleep_ns(world, 50 * MS_NS);
    ck_assert_str_eq(heard(), "");
    world_real_free(world);
}

/* Messages that ask for time, until now. */
static unsigned pleas_heard(void)
{
    unsigned pleas = 0;
    for (const char *text = heard(); *text; text = heard()) {
        ck_assert_str_eq(text, "EXTEND_TIMEOUT_USEC=60000000");
        pleas++;
    }
    return pleas;
}

static void co_slow_life(void *arg)
{
    struct notify notify;
    struct world *world = world_real_create(test_loop);
    (void)arg;

    notify_open(&notify);
    notify.patience_every_ns = 10 * MS_NS;
    notify_start(&notify, test_loop);
    co_sleep_ns(world, 100 * MS_NS);
    ck_assert_uint_ge(pleas_heard(), 2);
    notify_ready(&notify, "Serving");
    ck_assert_int_eq(strncmp(heard(), "READY=1", 7), 0);
    co_sleep_ns(world, 50 * MS_NS);
    ck_assert_uint_eq(pleas_heard(), 0);
    notify_stopping(&notify, 0);
    ck_assert_int_eq(strncmp(heard(), "STOPPING=1", 10), 0);
    co_sleep_ns(world, 100 * MS_NS);
    ck_assert_uint_ge(pleas_heard(), 2);
    /* Not for ever. */
    notify.patience_end_ns = 1;
    co_sleep_ns(world, 30 * MS_NS);
    pleas_heard();
    co_sleep_ns(world, 50 * MS_NS);
    ck_assert_uint_eq(pleas_heard(), 0);
    notify_close(&notify);
    world_real_free(world);
}

START_TEST(time_is_asked_for_where_it_is_needed)
{
    make_manager(test_path("notify"), false);
    test_run(co_slow_life, NULL);
}
END_TEST

START_TEST(a_life_is_told)
{
    make_manager(test_path("notify"), false);
    test_run(co_life, NULL);
}
END_TEST

START_TEST(an_abstract_socket_is_one_too)
{
    make_manager("@qcowd-test-notify", true);
    test_run(co_life, NULL);
}
END_TEST

/* A manager that does not read must not hold anything up. */
static void co_flood(void *arg)
{
    struct notify notify;
    (void)arg;
    notify_open(&notify);
    notify_start(&notify, test_loop);
    for (unsigned i = 0; i < 10000; i++) {
        notify_ready(&notify, "again");
    }
    notify_close(&notify);
}

START_TEST(a_deaf_manager_is_not_waited_for)
{
    make_manager(test_path("notify"), false);
    test_run(co_flood, NULL);
}
END_TEST

static void count_line(enum log_level level, const char *line, void *arg)
{
    ck_assert_int_eq((int)level, (int)LOG_LEVEL_WARNING);
    ck_assert_ptr_nonnull(strstr(line, "NOTIFY_SOCKET is "));
    ++*(unsigned *)arg;
}

static void co_silent(void *arg)
{
    struct notify notify;
    (void)arg;
    notify_open(&notify);
    ck_assert_int_eq(notify.fd, -1);
    notify_start(&notify, test_loop);
    notify_ready(&notify, "unheard");
    notify_reloading(&notify);
    notify_stopping(&notify, 1);
    notify_close(&notify);
}

START_TEST(without_a_manager_nothing_happens)
{
    unsigned lines = 0;
    char longer[200];
    log_set_sink(count_line, &lines);
    unsetenv("NOTIFY_SOCKET");
    test_run(co_silent, NULL);
    setenv("NOTIFY_SOCKET", "", 1);
    test_run(co_silent, NULL);
    ck_assert_uint_eq(lines, 0);
    memset(longer, '/', sizeof(longer) - 1);
    longer[sizeof(longer) - 1] = '\0';
    setenv("NOTIFY_SOCKET", longer, 1);
    test_run(co_silent, NULL);
    setenv("NOTIFY_SOCKET", "vsock:2:1", 1);
    test_run(co_silent, NULL);
    setenv("NOTIFY_SOCKET", "/nonexistent/socket", 1);
    test_run(co_silent, NULL);
    ck_assert_uint_eq(lines, 3);
    log_set_sink(NULL, NULL);
}
END_TEST

static void make_dir(void)
{
    test_dir_make(NULL);
}

int main(void)
{
    Suite *suite = suite_create("notify");
    TCase *tcase = tcase_create("notify");
    tcase_add_checked_fixture(tcase, make_dir, test_dir_remove);
    tcase_add_test(tcase, a_life_is_told);
    tcase_add_test(tcase, time_is_asked_for_where_it_is_needed);
    tcase_add_test(tcase, an_abstract_socket_is_one_too);
    tcase_add_test(tcase, a_deaf_manager_is_not_waited_for);
    tcase_add_test(tcase, without_a_manager_nothing_happens);
    suite_add_tcase(suite, tcase);
    return test_main(suite);
}
