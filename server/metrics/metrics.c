/* SPDX-License-Identifier: BSD-2-Clause */
/* One coroutine a client: it reads a head, answers, and hangs up. */
#include "metrics/metrics.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "export/statistics.h"
#include "io/stream.h"
#include "metrics/exposition.h"
#include "metrics/http_request.h"
#include "sched/co.h"

/* At once. A scraper comes alone; a second and a third may be looking by hand. */
#define CLIENTS_MAX 16U
/* From connecting to the end of the answer. */
#define PATIENCE_NS (10ULL * 1000 * 1000 * 1000)

struct client {
    struct list link;
    struct metrics *metrics;
    struct world *world;
    struct stream *stream;
    struct world_timer timer;
    struct http_request request;
};

static const char front_page[] = "<!DOCTYPE html><title>qcowd</title><p>qcowd " QCOWD_VERSION
                                 ": <a href=\"/metrics\">metrics</a> for Prometheus\n";

static void on_patience_over(struct world_timer *timer)
{
    struct client *client = container_of(timer, struct client, timer);
    client->stream->ops->abort(client->stream);
}

static void co_say(struct client *client, const char *status, const char *type, const char *body,
                   size_t body_len)
{
    char head[256];
    int head_len = snprintf(head, sizeof(head),
                            "HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\n"
                            "%sConnection: close\r\n\r\n",
                            status, type, body_len,
                            strncmp(status, "405", 3) == 0 ? "Allow: GET, HEAD\r\n" : "");
    struct iovec iov[] = {
        {head, (size_t)head_len},
        {(void *)(uintptr_t)body, client->request.head_only ? 0 : body_len},
    };
    /* Who is gone does not hear it. */
    (void)client->stream->ops->co_send(client->stream, iov, iov[1].iov_len > 0 ? 2 : 1, false);
}

static void co_say_plainly(struct client *client, const char *status)
{
    char body[64];
    int len = snprintf(body, sizeof(body), "%s\n", status);
    co_say(client, status, "text/plain; charset=utf-8", body, (size_t)len);
}

struct page {
    const struct server_statistics *statistics;
    char *text;
    size_t len;
};

static void write_page(void *arg)
{
    struct page *page = arg;
    page->text = exposition(page->statistics, &page->len);
}

static void co_say_metrics(struct client *client)
{
    struct server_statistics statistics;
    struct page page = {.statistics = &statistics};

    if (co_statistics_take(client->metrics->desired, client->metrics->listeners, &statistics) ==
        0) {
        /* Many exports make a long page, which holds up no request. */
        client->world->ops->co_work(client->world, write_page, &page);
    }
    if (page.text) {
        co_say(client, "200 OK", "text/plain; version=0.0.4; charset=utf-8", page.text, page.len);
    } else {
        co_say_plainly(client, "503 Service Unavailable");
    }
    free(page.text);
    statistics_free(&statistics);
}

static void co_answer(struct client *client, enum http_verdict verdict)
{
    switch (verdict) {
    case HTTP_METRICS:
        co_say_metrics(client);
        break;
    case HTTP_FRONT_PAGE:
        co_say(client, "200 OK", "text/html; charset=utf-8", front_page, sizeof(front_page) - 1);
        break;
    case HTTP_NOT_FOUND:
        co_say_plainly(client, "404 Not Found");
        break;
    case HTTP_NOT_ALLOWED:
        co_say_plainly(client, "405 Method Not Allowed");
        break;
    case HTTP_TOO_LONG:
        co_say_plainly(client, "431 Request Header Fields Too Large");
        break;
    case HTTP_MORE:
    case HTTP_BAD:
        co_say_plainly(client, "400 Bad Request");
        break;
    }
}

static void co_serve_client(void *arg)
{
    struct client *client = arg;
    struct metrics *metrics = client->metrics;
    struct http_request *request = &client->request;
    enum http_verdict verdict = HTTP_MORE;
    ssize_t got = 1;

    client->world->ops->timer_start(client->world, &client->timer,
                                    world_now_ns(client->world) + PATIENCE_NS);
    while (verdict == HTTP_MORE && got > 0) {
        got = client->stream->ops->co_recv(client->stream, request->head + request->len,
                                           http_request_room(request));
        if (got > 0) {
            verdict = http_request_take(request, (size_t)got);
        }
    }
    if (got > 0) {
        co_answer(client, verdict);
    }
    client->world->ops->timer_stop(client->world, &client->timer);
    list_remove(&client->link);
    client->stream->ops->co_close(client->stream);
    free(client);
    metrics->client_count--;
    group_leave(&metrics->serving);
}

static void co_take_client(void *arg, int fd)
{
    struct metrics *metrics = arg;
    struct stream *stream;

    if (metrics->stopping || metrics->client_count >= CLIENTS_MAX) {
        log_warning("metrics: refused a client: %u are connected, more are not served",
                    metrics->client_count);
        close(fd);
        return;
    }
    struct client *client = calloc(1, sizeof(*client));
    if (!client || stream_socket_create(metrics->doorway.loop, fd, &stream) < 0) {
        if (!client) {
            close(fd);
        }
        free(client);
        log_warning("metrics: refused a client: out of memory");
        return;
    }
    client->metrics = metrics;
    client->world = metrics->doorway.world;
    client->stream = stream;
    client->timer.fired = on_patience_over;
    list_push_back(&metrics->clients, &client->link);
    metrics->client_count++;
    group_enter(&metrics->serving);
    if (coro_spawn(co_serve_client, client, "metrics client") < 0) {
        group_leave(&metrics->serving);
        metrics->client_count--;
        list_remove(&client->link);
        stream->ops->co_close(stream);
        free(client);
        log_warning("metrics: refused a client: out of memory");
    }
}

void metrics_init(struct metrics *metrics, struct loop *loop, struct world *world,
                  struct desired *desired, const struct listeners *listeners)
{
    *metrics = (struct metrics){.desired = desired, .listeners = listeners};
    doorway_init(&metrics->doorway, loop, world, co_take_client, metrics);
    list_init(&metrics->clients);
    group_init(&metrics->serving);
}

int metrics_listen(struct metrics *metrics, const struct metrics_config *config,
                   struct errtext *err)
{
    int fds[DOORWAY_SOCKETS_MAX];
    int result = 0;

    if (config->unix_path) {
        return doorway_add_unix(&metrics->doorway, config->unix_path, NULL, err);
    }
    if (!config->tcp) {
        return 0;
    }
    int count = net_listen_tcp(config->host, config->port, fds, DOORWAY_SOCKETS_MAX, err);
    for (int i = 0; i < count; i++) {
        if (result < 0) {
            close(fds[i]);
        } else {
            result = doorway_add(&metrics->doorway, fds[i], err);
        }
    }
    return count < 0 ? count : result;
}

int metrics_start(struct metrics *metrics)
{
    return doorway_start(&metrics->doorway);
}

void co_metrics_stop(struct metrics *metrics)
{
    metrics->stopping = true;
    co_doorway_stop(&metrics->doorway);
    list_for_each(link, &metrics->clients) {
        struct client *client = list_entry(link, struct client, link);
        client->stream->ops->abort(client->stream);
    }
    co_group_wait(&metrics->serving);
}
