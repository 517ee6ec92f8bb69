/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The sandbox against the real kernel, each time in a child of its own, as there is no way out.
 * What the kernel does not have is not tested, and said so.
 */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/check.h"
#include "base/log.h"
#include "base/testing.h"
#include "sandbox/privileges.h"
#include "sandbox/sandbox.h"
#include "sandbox/seccomp_filter.h"

static char top[] = "/tmp/qcowd-test-sandbox-XXXXXX";

static const struct sandbox_simulation as_it_is;

static bool have_landlock(void)
{
    if (landlock_abi() < 0) {
        puts("skipped: this kernel has no Landlock");
        return false;
    }
    return true;
}

static bool have_seccomp(void)
{
    struct errtext why;
    if (filter_available(&why) < 0) {
        printf("skipped: no seccomp filter: %s\n", why.text);
        return false;
    }
    return true;
}

static void make_file(const char *name)
{
    int fd = open(name, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(write(fd, "x", 1), 1);
    close(fd);
}

/* top/{in,out,other}/file, and in/link -> out/file. */
static void set_up(void)
{
    ck_assert_ptr_nonnull(mkdtemp(top));
    ck_assert_int_eq(chdir(top), 0);
    ck_assert_int_eq(mkdir("in", 0700), 0);
    ck_assert_int_eq(mkdir("out", 0700), 0);
    ck_assert_int_eq(mkdir("other", 0700), 0);
    make_file("in/file");
    make_file("out/file");
    make_file("other/file");
    ck_assert_int_eq(symlink("../out/file", "in/link"), 0);
}

static void tear_down(void)
{
    static const char *const files[] = {"in/file", "in/link", "out/file", "other/file"};
    static const char *const directories[] = {"in", "out", "other"};
    for (unsigned i = 0; i < ARRAY_LEN(files); i++) {
        unlink(files[i]);
    }
    for (unsigned i = 0; i < ARRAY_LEN(directories); i++) {
        rmdir(directories[i]);
    }
    ck_assert_int_eq(chdir("/"), 0);
    rmdir(top);
}

/* ---- In a child: no check library, which would want to write files ---- */

#define EXPECT(condition)                                                            \
    do {                                                                             \
        if (!(condition)) {                                                          \
            printf("%s:%d: %s (errno %d)\n", __FILE__, __LINE__, #condition, errno); \
            fflush(stdout);                                                          \
            _exit(1);                                                                \
        }                                                                            \
    } while (0)

/* How a child ended that runs fn(): 0, or as waitpid() tells it. */
static int status_of(void (*fn)(void))
{
    int status;
    pid_t pid = fork();
    ck_assert_int_ge(pid, 0);
    if (pid == 0) {
        fn();
        _exit(0);
    }
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    return status;
}

static int opened(const char *path, int flags)
{
    int fd = open(path, flags | O_CLOEXEC, 0600);
    if (fd < 0) {
        return -errno;
    }
    close(fd);
    return 0;
}

static void create(struct sandbox **sandbox, const struct sandbox_simulation *simulation)
{
    struct errtext err;
    EXPECT(sandbox_create(sandbox, SANDBOX_ON, false, simulation, &err) == 0);
}

static void allow(struct sandbox *sandbox, const char *path, unsigned access)
{
    struct errtext err;
    EXPECT(sandbox_allow(sandbox, path, access, &err) == 0);
}

static void enter(struct sandbox *sandbox)
{
    struct errtext err;
    EXPECT(sandbox_seal(sandbox, &err) == 0);
    EXPECT(sandbox_enter_thread(sandbox, &err) == 0);
}

static void enter_with_nothing(void)
{
    struct sandbox *sandbox;
    create(&sandbox, &as_it_is);
    enter(sandbox);
    sandbox_free(sandbox);
}

static void check_nothing_opens(void)
{
    EXPECT(opened("in/file", O_RDONLY) == 0);
    enter_with_nothing();
    EXPECT(opened("in/file", O_RDONLY) == -EACCES);
    EXPECT(opened("in/file", O_WRONLY) == -EACCES);
    EXPECT(opened("in/new", O_WRONLY | O_CREAT) == -EACCES);
    EXPECT(opened("/dev/null", O_RDWR) == -EACCES);
    EXPECT(unlink("in/file") < 0);
}

static void check_what_is_allowed(void)
{
    struct sandbox *sandbox;
    create(&sandbox, &as_it_is);
    allow(sandbox, "in", SANDBOX_READ);
    allow(sandbox, "out", SANDBOX_READ | SANDBOX_WRITE);
    allow(sandbox, "other", SANDBOX_REMOVE_FILES);
    enter(sandbox);
    EXPECT(opened("in/file", O_RDONLY) == 0);
    EXPECT(opened("in", O_RDONLY | O_DIRECTORY) == 0);
    EXPECT(opened("in/file", O_WRONLY) == -EACCES);
    EXPECT(unlink("in/file") < 0);
    EXPECT(opened("out/file", O_RDWR) == 0);
    EXPECT(opened("out/file", O_WRONLY | O_TRUNC) == 0);
    EXPECT(opened("out/new", O_WRONLY | O_CREAT) == -EACCES);
    EXPECT(opened("other/file", O_RDONLY) == -EACCES);
    EXPECT(unlink("other/file") == 0);
    EXPECT(rmdir("other") < 0);
}

static void check_replaced_files(void)
{
    /* Allowed around a file: its successor, too. Allowed the file itself: not the successor. */
    struct sandbox *sandbox;
    struct errtext err;
    create(&sandbox, &as_it_is);
    EXPECT(sandbox_allow_around(sandbox, "in/link", SANDBOX_READ, &err) == 0);
    allow(sandbox, "other/file", SANDBOX_READ);
    EXPECT(rename("other/file", "other/old") == 0);
    EXPECT(opened("other/file", O_WRONLY | O_CREAT) == 0);
    enter(sandbox);
    EXPECT(opened("in/link", O_RDONLY) == 0);
    EXPECT(opened("in/file", O_RDONLY) == 0);
    EXPECT(opened("out/file", O_RDONLY) == 0);
    EXPECT(opened("other/old", O_RDONLY) == 0);
    EXPECT(opened("other/file", O_RDONLY) == -EACCES);
}

static void check_links(void)
{
    struct sandbox *sandbox;
    struct errtext err;
    create(&sandbox, &as_it_is);
    allow(sandbox, "in", SANDBOX_READ);
    EXPECT(sandbox_allow_links(sandbox, "in", SANDBOX_READ, &err) == 0);
    enter(sandbox);
    EXPECT(opened("in/link", O_RDONLY) == 0);
    EXPECT(opened("other/file", O_RDONLY) == -EACCES);
}

static void check_old_landlocks(void)
{
    for (int abi = 1; abi <= landlock_abi(); abi++) {
        pid_t pid = fork();
        if (pid == 0) {
            const struct sandbox_simulation old = {.landlock_abi = abi, .no_seccomp = true};
            struct sandbox *sandbox;
            create(&sandbox, &old);
            allow(sandbox, "out", SANDBOX_READ | SANDBOX_WRITE);
            enter(sandbox);
            EXPECT(opened("in/file", O_RDONLY) == -EACCES);
            EXPECT(opened("out/file", O_RDWR | O_TRUNC) == 0);
            struct sockaddr_in address = {.sin_family = AF_INET};
            int fd = socket(AF_INET, SOCK_STREAM, 0);
            EXPECT(fd >= 0);
            int ret = bind(fd, (const struct sockaddr *)&address, sizeof(address));
            EXPECT((ret < 0 && errno == EACCES) == (abi >= 4));
            EXPECT((kill(getppid(), 0) < 0 && errno == EPERM) == (abi >= 6));
            _exit(0);
        }
        int status = -1;
        EXPECT(pid > 0 && waitpid(pid, &status, 0) == pid && status == 0);
    }
}

static void check_without_landlock(void)
{
    /* Nothing needs to be opened, so seccomp alone refuses it all. */
    const struct sandbox_simulation none = {.landlock_abi = -1};
    struct sandbox *sandbox;
    create(&sandbox, &none);
    allow(sandbox, "other", SANDBOX_REMOVE_FILES);
    enter(sandbox);
    EXPECT(opened("in/file", O_RDONLY) == -EACCES);
    EXPECT(unlink("other/file") == 0);
}

static void check_off(void)
{
    struct sandbox *sandbox;
    struct errtext err;
    EXPECT(sandbox_create(&sandbox, SANDBOX_OFF, false, &as_it_is, &err) == 0);
    allow(sandbox, "/nonexistent", SANDBOX_READ);
    enter(sandbox);
    EXPECT(opened("in/file", O_RDWR) == 0);
    EXPECT(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 0);
}

static void check_system_calls(void)
{
    enter_with_nothing();
    EXPECT(socket(AF_INET, SOCK_STREAM, 0) < 0 && errno == EPERM);
    EXPECT(socket(AF_UNIX, SOCK_STREAM, 0) < 0 && errno == EPERM);
    EXPECT(kill(getppid(), 0) < 0 && errno == EPERM);
    EXPECT(kill(getpid(), 0) == 0);
    EXPECT(fork() < 0 && errno == EPERM);
    EXPECT(memfd_create("x", 0) < 0 && errno == EPERM);
    EXPECT(ioctl(0, TIOCSTI, "x") < 0 && errno == EPERM);
    EXPECT(mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) ==
           MAP_FAILED);
    void *memory = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    EXPECT(memory != MAP_FAILED);
    EXPECT(mprotect(memory, 4096, PROT_READ | PROT_EXEC) < 0 && errno == EPERM);
}

static void execute(void)
{
    char program[] = "/bin/true";
    char *arguments[] = {program, NULL};
    enter_with_nothing();
    execv(program, arguments);
}

static void make_ring(void)
{
    unsigned char parameters[256] = {0};
    enter_with_nothing();
    syscall(SYS_io_uring_setup, 1, parameters);
}

static void debug_parent(void)
{
    enter_with_nothing();
    syscall(SYS_process_vm_readv, getppid(), NULL, 0, NULL, 0, 0);
}

static void *open_here(void *arg)
{
    *(int *)arg = opened("in/file", O_RDONLY);
    return NULL;
}

struct other_thread {
    const struct sandbox *sandbox;
    pthread_barrier_t sealed;
    int before;
    int after;
};

static void *enter_later(void *arg)
{
    struct other_thread *other = arg;
    struct errtext err;
    pthread_barrier_wait(&other->sealed);
    other->before = opened("in/file", O_RDONLY);
    EXPECT(sandbox_enter_thread(other->sandbox, &err) == 0);
    other->after = opened("in/file", O_RDONLY);
    return NULL;
}

static void check_threads(void)
{
    struct sandbox *sandbox;
    struct other_thread other = {.before = -1};
    pthread_t before, after;
    int result = 0;
    create(&sandbox, &as_it_is);
    EXPECT(pthread_barrier_init(&other.sealed, NULL, 2) == 0);
    EXPECT(pthread_create(&before, NULL, enter_later, &other) == 0);
    enter(sandbox);
    other.sandbox = sandbox;
    pthread_barrier_wait(&other.sealed);
    EXPECT(pthread_join(before, NULL) == 0);
    EXPECT(other.before == 0 && other.after == -EACCES);
    EXPECT(pthread_create(&after, NULL, open_here, &result) == 0);
    EXPECT(pthread_join(after, NULL) == 0);
    EXPECT(result == -EACCES);
}

static void check_capabilities(void)
{
    char line[128];
    unsigned lines = 0;
    FILE *status = fopen("/proc/self/status", "re");
    EXPECT(status != NULL);
    enter_with_nothing();
    EXPECT(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1 || errno == EPERM);
    while (fgets(line, sizeof(line), status)) {
        static const char *const sets[] = {"CapInh:", "CapPrm:", "CapEff:", "CapAmb:"};
        for (unsigned i = 0; i < ARRAY_LEN(sets); i++) {
            if (strncmp(line, sets[i], strlen(sets[i])) == 0) {
                EXPECT(strstr(line, "0000000000000000"));
                lines++;
            }
        }
    }
    EXPECT(lines == 4);
}

/* ---- */

START_TEST(test_files)
{
    if (!have_landlock()) {
        return;
    }
    ck_assert_int_eq(status_of(check_nothing_opens), 0);
    ck_assert_int_eq(status_of(check_links), 0);
    ck_assert_int_eq(status_of(check_replaced_files), 0);
    ck_assert_int_eq(status_of(check_what_is_allowed), 0);
    unlink("other/old");
}
END_TEST

START_TEST(test_every_landlock)
{
    if (have_landlock()) {
        ck_assert_int_eq(status_of(check_old_landlocks), 0);
    }
}
END_TEST

START_TEST(test_filter)
{
    if (!have_seccomp()) {
        return;
    }
    ck_assert_int_eq(status_of(check_system_calls), 0);
    ck_assert_int_eq(status_of(check_without_landlock), 0);
    static void (*const deadly[])(void) = {execute, make_ring, debug_parent};
    for (unsigned i = 0; i < ARRAY_LEN(deadly); i++) {
        int status = status_of(deadly[i]);
        ck_assert_msg(WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS, "%u: status %d", i,
                      status);
    }
}
END_TEST

START_TEST(test_threads_and_capabilities)
{
    if (have_landlock()) {
        ck_assert_int_eq(status_of(check_threads), 0);
    }
    ck_assert_int_eq(status_of(check_capabilities), 0);
}
END_TEST

START_TEST(test_off)
{
    ck_assert_int_eq(status_of(check_off), 0);
}
END_TEST

struct told {
    const char *name;
    unsigned *lines;
};

static void look_for(enum log_level level, const char *line, void *arg)
{
    const struct told *told = arg;
    *told->lines += level == LOG_LEVEL_INFO && strstr(line, told->name);
}

START_TEST(test_required_and_absent)
{
    static const struct sandbox_simulation lacking[] = {{.landlock_abi = -1}, {.no_seccomp = true}};
    static const char *const named[] = {"Landlock", "seccomp"};
    for (unsigned i = 0; i < ARRAY_LEN(lacking); i++) {
        struct sandbox *sandbox = NULL;
        struct errtext err = {.text = ""};
        if (i == 1 && !have_landlock()) {
            return;
        }
        ck_assert_int_eq(sandbox_create(&sandbox, SANDBOX_REQUIRE, false, &lacking[i], &err),
                         -ENOSYS);
        ck_assert_msg(strstr(err.text, "--sandbox require") && strstr(err.text, named[i]), "%s",
                      err.text);
        ck_assert_int_eq(sandbox_create(&sandbox, SANDBOX_ON, false, &lacking[i], &err), 0);
        unsigned told = 0;
        log_set_level(LOG_LEVEL_INFO);
        log_set_sink(look_for, &(struct told){named[i], &told});
        sandbox_tell_missing(sandbox);
        log_set_sink(NULL, NULL);
        ck_assert_uint_eq(told, 1);
        sandbox_free(sandbox);
    }
}
END_TEST

START_TEST(test_allowing_what_is_not_there)
{
    struct sandbox *sandbox;
    struct errtext err = {.text = ""};
    ck_assert_int_eq(sandbox_create(&sandbox, SANDBOX_ON, false, &as_it_is, &err), 0);
    ck_assert_int_eq(sandbox_allow(sandbox, "in/nothing", SANDBOX_READ, &err), -ENOENT);
    ck_assert_ptr_nonnull(strstr(err.text, "in/nothing"));
    ck_assert_int_eq(sandbox_allow_links(sandbox, "nothing", SANDBOX_READ, &err), -ENOENT);
    sandbox_free(sandbox);
}
END_TEST

START_TEST(test_identities_that_are_refused)
{
    static const struct {
        const char *text;
        const char *mentions;
    } refused[] = {
        {"no-such-user", "no user 'no-such-user'"},
        {"nobody:no-such-group", "no group 'no-such-group'"},
        {"root", "root, who keeps all rights"},
        {"0:1", "root, who keeps all rights"},
        {"4294967295", "no user"},
        {":nogroup", "names no user"},
        {"no\nsuch", "no\\x0asuch"},
    };
    for (unsigned i = 0; i < ARRAY_LEN(refused); i++) {
        struct identity identity;
        struct errtext err = {.text = ""};
        int result = identity_find(&identity, refused[i].text, &err);
        ck_assert_msg(result == -EINVAL && strstr(err.text, refused[i].mentions), "%d: %s", result,
                      err.text);
    }
    if (geteuid() != 0) {
        struct identity identity;
        struct errtext err = {.text = ""};
        ck_assert_int_eq(identity_find(&identity, "4123456789:5", &err), -EPERM);
        ck_assert_ptr_nonnull(strstr(err.text, "only root"));
    } else {
        struct identity identity;
        struct errtext err = {.text = ""};
        ck_assert_int_eq(identity_find(&identity, "4123456789", &err), -EINVAL);
        ck_assert_ptr_nonnull(strstr(err.text, "--user 4123456789:GROUP"));
    }
}
END_TEST

static void become_another(void)
{
    struct identity identity;
    struct errtext err;
    gid_t groups[4];
    EXPECT(identity_find(&identity, "4123456789:4123456788", &err) == 0);
    EXPECT(identity_assume(&identity, &err) == 0);
    EXPECT(getuid() == 4123456789U && geteuid() == 4123456789U);
    EXPECT(getgid() == 4123456788U && getegid() == 4123456788U);
    EXPECT(getgroups(4, groups) == 0);
    EXPECT(setuid(0) < 0 && setgid(0) < 0);
    identity_free(&identity);
}

START_TEST(test_becoming_another_user)
{
    if (geteuid() != 0) {
        puts("skipped: only root can become another user");
        return;
    }
    ck_assert_int_eq(status_of(become_another), 0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("sandbox");
    TCase *tcase = tcase_create("sandbox");
    tcase_set_timeout(tcase, 50);
    tcase_add_checked_fixture(tcase, set_up, tear_down);
    tcase_add_test(tcase, test_files);
    tcase_add_test(tcase, test_every_landlock);
    tcase_add_test(tcase, test_filter);
    tcase_add_test(tcase, test_threads_and_capabilities);
    tcase_add_test(tcase, test_off);
    tcase_add_test(tcase, test_required_and_absent);
    tcase_add_test(tcase, test_allowing_what_is_not_there);
    tcase_add_test(tcase, test_identities_that_are_refused);
    tcase_add_test(tcase, test_becoming_another_user);
    suite_add_tcase(suite, tcase);
    return test_suite_run(suite);
}
