/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Locks against ourselves, against a forked process, and against qemu-io where it is installed.
 */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/testing.h"
#include "io/filelock.h"

static char dir[256];

static void make_dir(void)
{
    const char *tmp = getenv("TMPDIR");
    snprintf(dir, sizeof(dir), "%s/qcowd-filelock-XXXXXX", tmp ? tmp : "/tmp");
    ck_assert_ptr_nonnull(mkdtemp(dir));
}

static void remove_dir(void)
{
    char command[512];
    snprintf(command, sizeof(command), "rm -rf '%s'", dir);
    ck_assert_int_eq(system(command), 0);
}

static int open_image(int flags)
{
    char path[512];
    snprintf(path, sizeof(path), "%s/image", dir);
    int fd = open(path, flags | O_CREAT | O_CLOEXEC, 0600);
    ck_assert_int_ge(fd, 0);
    return fd;
}

static int take(int fd, bool writable)
{
    struct errtext err = {""};
    int ret = filelock_take(fd, "image", writable, &err);
    if (ret < 0) {
        ck_assert_ptr_nonnull(strstr(err.text, "image: locked by another process (lock \""));
        ck_assert_ptr_nonnull(strstr(err.text, "stop the server or guest"));
    }
    return ret;
}

/* What another process gets that wants the lock. */
static int take_in_child(bool writable)
{
    pid_t pid = fork();
    ck_assert_int_ge(pid, 0);
    if (pid == 0) {
        int fd = open_image(writable ? O_RDWR : O_RDONLY);
        _exit(-filelock_take(fd, "image", writable, NULL));
    }
    int status;
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    ck_assert(WIFEXITED(status));
    return -WEXITSTATUS(status);
}

START_TEST(test_one_process)
{
    int first = open_image(O_RDWR);
    int second = open_image(O_RDWR);
    int reader = open_image(O_RDONLY);

    ck_assert_int_eq(take(first, true), 0);
    ck_assert_int_eq(take(second, true), -EAGAIN);
    ck_assert_int_eq(take(reader, false), -EAGAIN);
    close(first);
    /* The refused ones left nothing behind. */
    ck_assert_int_eq(take(reader, false), 0);
    ck_assert_int_eq(take(second, true), -EAGAIN);
    ck_assert_int_eq(take(second, false), 0);
    close(reader);
    close(second);
}
END_TEST

START_TEST(test_two_processes)
{
    int fd = open_image(O_RDWR);
    ck_assert_int_eq(take(fd, true), 0);
    ck_assert_int_eq(take_in_child(true), -EAGAIN);
    ck_assert_int_eq(take_in_child(false), -EAGAIN);
    close(fd);

    fd = open_image(O_RDONLY);
    ck_assert_int_eq(take(fd, false), 0);
    ck_assert_int_eq(take_in_child(true), -EAGAIN);
    ck_assert_int_eq(take_in_child(false), 0);
    /* Closing another descriptor of the file must not drop the lock, as POSIX locks would be. */
    close(open_image(O_RDONLY));
    ck_assert_int_eq(take_in_child(true), -EAGAIN);
    close(fd);
    ck_assert_int_eq(take_in_child(true), 0);
}
END_TEST

START_TEST(test_bad_descriptor)
{
    struct errtext err = {""};
    int fd = open_image(O_RDWR);
    close(fd);
    ck_assert_int_eq(filelock_take(fd, "image", true, &err), -EBADF);
    ck_assert_ptr_nonnull(strstr(err.text, "image: cannot lock"));
}
END_TEST

/* Runs a shell command in the directory; its exit status. */
static int run(const char *command)
{
    char line[1024];
    snprintf(line, sizeof(line), "cd '%s' && { %s; } >/dev/null 2>&1 </dev/null", dir, command);
    int status = system(line);
    ck_assert(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static bool have_qemu(void)
{
    return run("qemu-io --version && qemu-img --version") == 0;
}

START_TEST(test_qemu_respects_us)
{
    if (!have_qemu()) {
        return;
    }
    ck_assert_int_eq(run("qemu-img create -f qcow2 image 1M"), 0);
    ck_assert_int_eq(run("qemu-img create -f qcow2 -b image -F qcow2 overlay"), 0);

    int fd = open_image(O_RDWR);
    ck_assert_int_eq(take(fd, true), 0);
    ck_assert_int_ne(run("qemu-io -c 'write 0 64k' image"), 0);
    ck_assert_int_ne(run("qemu-io -r -c 'read 0 64k' image"), 0);
    ck_assert_int_ne(run("qemu-io -c 'write 0 64k' overlay"), 0);
    ck_assert_int_ne(run("qemu-img info image"), 0);
    ck_assert_int_eq(run("qemu-img info -U image"), 0);
    close(fd);

    fd = open_image(O_RDONLY);
    ck_assert_int_eq(take(fd, false), 0);
    ck_assert_int_ne(run("qemu-io -c 'write 0 64k' image"), 0);
    ck_assert_int_eq(run("qemu-io -r -c 'read 0 64k' image"), 0);
    ck_assert_int_eq(run("qemu-io -c 'write 0 64k' overlay"), 0);
    ck_assert_int_eq(run("qemu-img info image"), 0);
    close(fd);
    ck_assert_int_eq(run("qemu-io -c 'write 0 64k' image"), 0);
}
END_TEST

struct qemu_process {
    pid_t pid;
    int commands;
};

/* A qemu-io that has opened the image in `dir` and waits for its next command. */
static struct qemu_process qemu_hold(const char *option, const char *name)
{
    int to[2];
    int from[2];
    ck_assert_int_eq(pipe2(to, O_CLOEXEC), 0);
    ck_assert_int_eq(pipe2(from, O_CLOEXEC), 0);
    pid_t pid = fork();
    ck_assert_int_ge(pid, 0);
    if (pid == 0) {
        if (chdir(dir) == 0 && dup2(to[0], 0) == 0 && dup2(from[1], 1) == 1) {
            execlp("qemu-io", "qemu-io", "-f", "qcow2", option, name, (char *)NULL);
        }
        _exit(127);
    }
    close(to[0]);
    close(from[1]);
    static const char command[] = "read 0 512\n";
    ck_assert_int_eq(write(to[1], command, strlen(command)), (ssize_t)strlen(command));
    /* The image is open once the command was answered. */
    char answer[4096];
    size_t len = 0;
    while (len < sizeof(answer) - 1) {
        ssize_t got = read(from[0], answer + len, sizeof(answer) - 1 - len);
        ck_assert_int_gt(got, 0);
        len += (size_t)got;
        answer[len] = '\0';
        if (strstr(answer, "512 bytes")) {
            break;
        }
    }
    close(from[0]);
    return (struct qemu_process){pid, to[1]};
}

static void qemu_end(struct qemu_process qemu)
{
    int status;
    close(qemu.commands);
    ck_assert_int_eq(waitpid(qemu.pid, &status, 0), qemu.pid);
}

START_TEST(test_we_respect_qemu)
{
    if (!have_qemu()) {
        return;
    }
    ck_assert_int_eq(run("qemu-img create -f qcow2 image 1M"), 0);
    ck_assert_int_eq(run("qemu-img create -f qcow2 -b image -F qcow2 overlay"), 0);

    struct qemu_process qemu = qemu_hold("--cache=writeback", "image");
    ck_assert_int_eq(take_in_child(true), -EAGAIN);
    ck_assert_int_eq(take_in_child(false), -EAGAIN);
    qemu_end(qemu);

    qemu = qemu_hold("--read-only", "image");
    ck_assert_int_eq(take_in_child(true), -EAGAIN);
    ck_assert_int_eq(take_in_child(false), 0);
    qemu_end(qemu);

    qemu = qemu_hold("--cache=writeback", "overlay");
    ck_assert_int_eq(take_in_child(true), -EAGAIN);
    ck_assert_int_eq(take_in_child(false), 0);
    qemu_end(qemu);
    ck_assert_int_eq(take_in_child(true), 0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("filelock");
    TCase *tcase = tcase_create("filelock");
    tcase_set_timeout(tcase, 30);
    tcase_add_checked_fixture(tcase, make_dir, remove_dir);
    tcase_add_test(tcase, test_one_process);
    tcase_add_test(tcase, test_two_processes);
    tcase_add_test(tcase, test_bad_descriptor);
    tcase_add_test(tcase, test_qemu_respects_us);
    tcase_add_test(tcase, test_we_respect_qemu);
    suite_add_tcase(suite, tcase);
    return test_suite_run(suite);
}
