/* SPDX-License-Identifier: BSD-2-Clause */
#include "service/notify.h"

#include <errno.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "base/check.h"
#include "base/log.h"

#define S_NS 1000000000ULL
/* Asked for this often, and each time for so long that a few lost chances do no harm. */
#define PATIENCE_EVERY_NS (10 * S_NS)
#define PATIENCE_US       60000000ULL
/* A disk that has not taken everything by then will not: the manager may end us. */
#define STOPPING_MOST_NS (600 * S_NS)

/* "/path" or "@abstract". False for what is neither, or too long. */
static bool parse_address(const char *text, struct sockaddr_un *address, socklen_t *len)
{
    size_t text_len = strlen(text);
    if ((*text != '/' && *text != '@') || text_len >= sizeof(address->sun_path)) {
        return false;
    }
    memset(address, 0, sizeof(*address));
    address->sun_family = AF_UNIX;
    memcpy(address->sun_path, text, text_len);
    if (*text == '@') {
        address->sun_path[0] = '\0';
    }
    *len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + text_len);
    return true;
}

static int connect_manager(const char *where)
{
    struct sockaddr_un address;
    socklen_t len;
    char shown[128];
    int error = EAFNOSUPPORT;
    if (parse_address(where, &address, &len)) {
        int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (fd >= 0 && connect(fd, (const struct sockaddr *)&address, len) == 0) {
            return fd;
        }
        error = errno;
        if (fd >= 0) {
            close(fd);
        }
    }
    log_warning("cannot tell the service manager anything, NOTIFY_SOCKET is %s: %s",
                err_sanitise(shown, sizeof(shown), where, strlen(where)), strerror(error));
    return -1;
}

/* Half the time after which the manager would lose patience; 0: it does not watch us. */
static uint64_t watchdog_interval(const char *usec, const char *pid)
{
    if (!usec || (pid && *pid && strtoul(pid, NULL, 10) != (unsigned long)getpid())) {
        return 0;
    }
    return strtoull(usec, NULL, 10) * 1000 / 2;
}

void notify_open(struct notify *notify)
{
    const char *where = getenv("NOTIFY_SOCKET");
    memset(notify, 0, sizeof(*notify));
    notify->fd = where && *where ? connect_manager(where) : -1;
    notify->patience_every_ns = PATIENCE_EVERY_NS;
    notify->watchdog_ns = watchdog_interval(getenv("WATCHDOG_USEC"), getenv("WATCHDOG_PID"));
    unsetenv("NOTIFY_SOCKET");
    unsetenv("WATCHDOG_USEC");
    unsetenv("WATCHDOG_PID");
}

/* Never waits: a manager that does not listen is none of the clients' business. */
__attribute__((format(printf, 2, 3))) static void tell(const struct notify *notify,
                                                       const char *format, ...)
{
    char text[512];
    va_list args;
    if (notify->fd < 0) {
        return;
    }
    va_start(args, format);
    int len = vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    len = MIN_OF(len, (int)sizeof(text) - 1);
    if (send(notify->fd, text, (size_t)len, MSG_NOSIGNAL | MSG_DONTWAIT) < 0) {
        log_debug("the service manager did not hear \"%.40s\": %s", text, strerror(errno));
    }
}

static void feed_watchdog(struct world_timer *timer)
{
    struct notify *notify = container_of(timer, struct notify, watchdog);
    tell(notify, "WATCHDOG=1");
    loop_timer_start(notify->loop, timer, loop_now_ns(notify->loop) + notify->watchdog_ns);
}

static void ask_for_time(struct world_timer *timer)
{
    struct notify *notify = container_of(timer, struct notify, patience);
    uint64_t now_ns = loop_now_ns(notify->loop);
    if (now_ns < notify->patience_end_ns) {
        tell(notify, "EXTEND_TIMEOUT_USEC=%llu", PATIENCE_US);
        loop_timer_start(notify->loop, timer, now_ns + notify->patience_every_ns);
    }
}

void notify_start(struct notify *notify, struct loop *loop)
{
    notify->loop = loop;
    notify->watchdog.fired = feed_watchdog;
    notify->patience.fired = ask_for_time;
    if (notify->fd < 0) {
        return;
    }
    notify->patience_end_ns = UINT64_MAX;
    loop_timer_start(loop, &notify->patience, loop_now_ns(loop) + notify->patience_every_ns);
    if (notify->watchdog_ns > 0) {
        feed_watchdog(&notify->watchdog);
    }
}

void notify_ready(struct notify *notify, const char *status)
{
    char shown[400];
    notify->patience_end_ns = 0;
    if (notify->loop) {
        loop_timer_stop(notify->loop, &notify->patience);
    }
    /* Names have a right to line breaks, a status has not: it would say something else. */
    tell(notify, "READY=1\nSTATUS=%s", err_sanitise(shown, sizeof(shown), status, strlen(status)));
}

void notify_reloading(struct notify *notify)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    tell(notify, "RELOADING=1\nMONOTONIC_USEC=%llu\nSTATUS=Reloading",
         (unsigned long long)now.tv_sec * 1000000ULL + (unsigned long long)now.tv_nsec / 1000ULL);
}

void notify_stopping(struct notify *notify, uint64_t grace_ns)
{
    if (notify->fd < 0 || !notify->loop) {
        return;
    }
    uint64_t now_ns = loop_now_ns(notify->loop);
    tell(notify,
         "STOPPING=1\nEXTEND_TIMEOUT_USEC=%llu\nSTATUS=Stopping: finishing requests, "
         "writing everything to the disk",
         PATIENCE_US);
    notify->patience_end_ns = now_ns + grace_ns + STOPPING_MOST_NS;
    loop_timer_start(notify->loop, &notify->patience, now_ns + notify->patience_every_ns);
}

void notify_close(struct notify *notify)
{
    if (notify->loop) {
        loop_timer_stop(notify->loop, &notify->watchdog);
        loop_timer_stop(notify->loop, &notify->patience);
    }
    if (notify->fd >= 0) {
        close(notify->fd);
        notify->fd = -1;
    }
}
