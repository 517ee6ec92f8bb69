/* SPDX-License-Identifier: BSD-2-Clause */
#include "listen/stdio_stream.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "io/net.h"

static int take_descriptor(int fd)
{
    int moved = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (moved < 0 || null < 0 || dup2(null, fd) < 0) {
        int error = errno;
        if (moved >= 0) {
            close(moved);
        }
        moved = -error;
    }
    if (null >= 0) {
        close(null);
    }
    return moved;
}

int stdio_take(struct loop *loop, struct stream **out, struct errtext *err)
{
    if (isatty(STDIN_FILENO)) {
        return err_set(err, EINVAL,
                       "--stdio speaks NBD, and stdin is a terminal: let a client start qcowd, or "
                       "use --unix");
    }
    int in = take_descriptor(STDIN_FILENO);
    int out_fd = in < 0 ? in : take_descriptor(STDOUT_FILENO);
    if (out_fd < 0) {
        if (in >= 0) {
            close(in);
        }
        return err_set(err, -out_fd, "cannot use stdin and stdout: %s", strerror(-out_fd));
    }
    int result = stream_pair_create(loop, in, out_fd, out);
    if (result < 0) {
        err_set(err, -result, "cannot serve stdin and stdout: %s", strerror(-result));
    }
    return result;
}
