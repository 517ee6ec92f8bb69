/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * One letter a call, on the caller's stack: it goes out to the callee's box and comes back to the
 * caller's. Whoever puts the first letter into an empty box rings (eventfd); the receiver takes all
 * that are there at once.
 */
#include "sched/mailbox.h"

#include <assert.h>
#include <errno.h>
#include <liburing.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/list.h"
#include "sched/co.h"
#include "sched/loop.h"
#include "sched/sync.h"

struct mailbox {
    struct loop *loop;
    int event_fd;
    struct group receiver;
    pthread_mutex_t lock;
    struct list letters; /* under the lock */
    bool closing;        /* under the lock */
};

struct letter {
    struct list link;
    struct mailbox *sender;
    struct coro *caller;
    void (*fn)(void *arg);
    void *arg;
    bool returning;
    int result;
};

static void ring(struct mailbox *mailbox)
{
    uint64_t one = 1;
    ssize_t written = write(mailbox->event_fd, &one, sizeof(one));
    assert(written == (ssize_t)sizeof(one)); /* fails only at 2^64 unread rings */
    (void)written;
}

static void post(struct mailbox *to, struct letter *letter)
{
    pthread_mutex_lock(&to->lock);
    bool first = list_empty(&to->letters);
    assert(!to->closing);
    list_push_back(&to->letters, &letter->link);
    /* Under the lock: whoever closes the box next has the bell still. */
    if (first) {
        ring(to);
    }
    pthread_mutex_unlock(&to->lock);
}

static void post_back(struct letter *letter, int result)
{
    letter->result = result;
    letter->returning = true;
    post(letter->sender, letter);
}

static void co_carry_out(void *arg)
{
    struct letter *letter = arg;
    letter->fn(letter->arg);
    post_back(letter, 0);
}

static void open_letter(struct letter *letter)
{
    if (letter->returning) {
        coro_wake(letter->caller);
    } else if (coro_spawn(co_carry_out, letter, "call from another loop") < 0) {
        post_back(letter, -ENOMEM);
    }
}

/* Returns whether the box is being closed. */
static bool take_letters(struct mailbox *mailbox)
{
    struct list taken = LIST_INIT(taken);
    pthread_mutex_lock(&mailbox->lock);
    list_splice_back(&taken, &mailbox->letters);
    bool closing = mailbox->closing;
    pthread_mutex_unlock(&mailbox->lock);
    while (!list_empty(&taken)) {
        open_letter(list_entry(list_pop_front(&taken), struct letter, link));
    }
    return closing;
}

static void co_receive(void *arg)
{
    struct mailbox *mailbox = arg;
    bool closing = false;
    while (!closing) {
        uint64_t rings;
        struct loop_op op;
        struct io_uring_sqe *sqe = loop_sqe(mailbox->loop);
        io_uring_prep_read(sqe, mailbox->event_fd, &rings, sizeof(rings), 0);
        loop_sqe_attach(sqe, &op);
        int result = co_loop_wait(mailbox->loop, &op);
        assert(result == (int)sizeof(rings) || result == -EINTR || result == -ENOMEM);
        (void)result;
        closing = take_letters(mailbox);
    }
    group_leave(&mailbox->receiver);
}

static void mailbox_free(struct mailbox *mailbox)
{
    pthread_mutex_destroy(&mailbox->lock);
    close(mailbox->event_fd);
    free(mailbox);
}

int mailbox_open(struct loop *loop, struct mailbox **out)
{
    struct mailbox *mailbox = calloc(1, sizeof(*mailbox));
    if (!mailbox) {
        return -ENOMEM;
    }
    mailbox->event_fd = eventfd(0, EFD_CLOEXEC);
    if (mailbox->event_fd < 0) {
        int error = errno;
        free(mailbox);
        return -error;
    }
    mailbox->loop = loop;
    pthread_mutex_init(&mailbox->lock, NULL);
    list_init(&mailbox->letters);
    group_init(&mailbox->receiver);
    group_enter(&mailbox->receiver);
    if (coro_spawn(co_receive, mailbox, "mailbox") < 0) {
        mailbox_free(mailbox);
        return -ENOMEM;
    }
    *out = mailbox;
    return 0;
}

int co_mailbox_call(struct mailbox *from, struct mailbox *to, void (*fn)(void *arg), void *arg)
{
    if (from == to) {
        fn(arg);
        return 0;
    }
    struct letter letter = {.sender = from, .caller = coro_self(), .fn = fn, .arg = arg};
    assert(letter.caller);
    post(to, &letter);
    co_suspend();
    return letter.result;
}

void co_mailbox_close(struct mailbox *mailbox)
{
    if (!mailbox) {
        return;
    }
    pthread_mutex_lock(&mailbox->lock);
    assert(list_empty(&mailbox->letters));
    mailbox->closing = true;
    ring(mailbox);
    pthread_mutex_unlock(&mailbox->lock);
    co_group_wait(&mailbox->receiver);
    mailbox_free(mailbox);
}
