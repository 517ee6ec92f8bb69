/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * One lock, two lists. Workers are for pieces of work of tens of microseconds and more, so that a
 * lock taken twice a piece does not show. The descriptor is written only when the list of finished
 * work was empty: the loop takes everything there is each time it is told.
 */
#include "sched/workers.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define THREADS_LEAST 2
#define THREADS_MOST  4

struct worker_pool {
    pthread_mutex_t lock;
    pthread_cond_t work_or_stop;
    struct list waiting;
    struct list finished;
    bool stopping;
    int event_fd;
    unsigned outstanding; /* the submitter's count; the workers do not look at it */
    unsigned thread_count;
    pthread_t threads[THREADS_MOST];
};

static void tell_submitter(struct worker_pool *pool)
{
    uint64_t one = 1;
    ssize_t written;
    do {
        written = write(pool->event_fd, &one, sizeof(one));
    } while (written < 0 && errno == EINTR);
    assert(written == sizeof(one));
}

static void *worker_main(void *arg)
{
    struct worker_pool *pool = arg;
    /* By the thread itself: naming another one opens a file in /proc. */
    pthread_setname_np(pthread_self(), "qcowd-worker");
    pthread_mutex_lock(&pool->lock);
    for (;;) {
        while (list_empty(&pool->waiting) && !pool->stopping) {
            pthread_cond_wait(&pool->work_or_stop, &pool->lock);
        }
        if (pool->stopping) {
            break;
        }
        struct work *work = list_entry(list_pop_front(&pool->waiting), struct work, link);
        pthread_mutex_unlock(&pool->lock);
        work->fn(work->arg);
        pthread_mutex_lock(&pool->lock);
        bool tell = list_empty(&pool->finished);
        list_push_back(&pool->finished, &work->link);
        if (tell) {
            tell_submitter(pool);
        }
    }
    pthread_mutex_unlock(&pool->lock);
    return NULL;
}

/* As many as can be had; returns why no more. */
static int start_threads(struct worker_pool *pool, unsigned wanted)
{
    sigset_t all, before;
    sigfillset(&all);
    /* Comes of a system call that a filter refuses, to the thread that made it, and no other. */
    sigdelset(&all, SIGSYS);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = 0;
    while (pool->thread_count < wanted && !error) {
        error = pthread_create(&pool->threads[pool->thread_count], NULL, worker_main, pool);
        if (!error) {
            pool->thread_count++;
        }
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return -error;
}

/* Those that we may run on. sysconf() would have to open files, which a sandbox may forbid. */
static unsigned threads_wanted(void)
{
    cpu_set_t processors;
    if (sched_getaffinity(0, sizeof(processors), &processors) < 0) {
        return THREADS_MOST; /* more than the set has room for */
    }
    return (unsigned)MIN_OF(MAX_OF(CPU_COUNT(&processors), THREADS_LEAST), THREADS_MOST);
}

static void end_threads(struct worker_pool *pool)
{
    pthread_mutex_lock(&pool->lock);
    pool->stopping = true;
    pthread_cond_broadcast(&pool->work_or_stop);
    pthread_mutex_unlock(&pool->lock);
    for (unsigned i = 0; i < pool->thread_count; i++) {
        pthread_join(pool->threads[i], NULL);
    }
    pool->thread_count = 0;
    pool->stopping = false;
}

int worker_pool_create(struct worker_pool **out)
{
    struct worker_pool *pool = calloc(1, sizeof(*pool));
    if (!pool) {
        return -ENOMEM;
    }
    list_init(&pool->waiting);
    list_init(&pool->finished);
    pool->event_fd = eventfd(0, EFD_CLOEXEC);
    if (pool->event_fd < 0) {
        int error = errno;
        free(pool);
        return -error;
    }
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->work_or_stop, NULL);
    int ret = start_threads(pool, threads_wanted());
    if (pool->thread_count == 0) {
        worker_pool_free(pool);
        return ret;
    }
    *out = pool;
    return 0;
}

void worker_pool_free(struct worker_pool *pool)
{
    if (!pool) {
        return;
    }
    assert(pool->outstanding == 0);
    end_threads(pool);
    pthread_cond_destroy(&pool->work_or_stop);
    pthread_mutex_destroy(&pool->lock);
    close(pool->event_fd);
    free(pool);
}

int worker_pool_renew(struct worker_pool *pool)
{
    unsigned wanted = pool->thread_count;
    end_threads(pool);
    int ret = start_threads(pool, wanted);
    return pool->thread_count > 0 ? 0 : ret;
}

unsigned worker_pool_threads(const struct worker_pool *pool)
{
    return pool->thread_count;
}

int worker_pool_fd(const struct worker_pool *pool)
{
    return pool->event_fd;
}

void worker_pool_submit(struct worker_pool *pool, struct work *work)
{
    pool->outstanding++;
    pthread_mutex_lock(&pool->lock);
    list_push_back(&pool->waiting, &work->link);
    pthread_cond_signal(&pool->work_or_stop);
    pthread_mutex_unlock(&pool->lock);
}

void worker_pool_collect(struct worker_pool *pool, struct list *finished)
{
    struct list taken = LIST_INIT(taken);
    pthread_mutex_lock(&pool->lock);
    list_splice_back(&taken, &pool->finished);
    pthread_mutex_unlock(&pool->lock);
    list_for_each(node, &taken) {
        pool->outstanding--;
    }
    list_splice_back(finished, &taken);
}
