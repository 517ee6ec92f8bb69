/* SPDX-License-Identifier: BSD-2-Clause */
#include "cmd/qmp_client.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/log.h"

/* A server that says nothing for so long is none. Commands may wait for clients that leave. */
#define GREETING_TIMEOUT_S 10

static FILE *reach(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct timeval timeout = {.tv_sec = GREETING_TIMEOUT_S};
    if (strlen(path) >= sizeof(address.sun_path)) {
        log_error("%s: the path of a socket has %zu bytes at most", path,
                  sizeof(address.sun_path) - 1);
        return NULL;
    }
    strcpy(address.sun_path, path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
        log_error("%s: cannot connect: %s", path, strerror(errno));
        if (fd >= 0) {
            close(fd);
        }
        return NULL;
    }
    (void)setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
    FILE *server = fdopen(fd, "r+");
    if (!server) {
        close(fd);
    }
    return server;
}

static bool say(FILE *server, json_t *what)
{
    fseek(server, 0, SEEK_CUR); /* C wants it between reading and writing */
    return json_dumpf(what, server, JSON_COMPACT) == 0 && fputs("\r\n", server) >= 0 &&
           fflush(server) == 0;
}

/* The next line that has `key`, or an error; events and greetings pass by. NULL: there is none. */
static json_t *hear(FILE *server, const char *key)
{
    char *line = NULL;
    size_t size = 0;
    json_t *heard = NULL;
    while (!heard && getline(&line, &size, server) > 0) {
        heard = json_loads(line, 0, NULL);
        if (!json_object_get(heard, key) && !json_object_get(heard, "error")) {
            bool other = json_object_get(heard, "event") || json_object_get(heard, "QMP");
            json_decref(heard);
            heard = NULL;
            if (!other) {
                break;
            }
        }
    }
    free(line);
    return heard;
}

int qmp_client_open(struct qmp_client *client, const char *path)
{
    struct timeval for_ever = {0};

    *client = (struct qmp_client){.path = path, .server = reach(path)};
    if (!client->server) {
        return -1;
    }
    json_t *negotiate = json_pack("{s:s}", "execute", "qmp_capabilities");
    json_t *greeting = hear(client->server, "QMP");
    json_t *negotiated =
        greeting && say(client->server, negotiate) ? hear(client->server, "return") : NULL;
    int result = negotiated ? 0 : -1;
    if (result < 0) {
        log_error("%s: what listens there does not speak QMP", path);
        qmp_client_close(client);
    } else {
        (void)setsockopt(fileno(client->server), SOL_SOCKET, SO_RCVTIMEO, &for_ever,
                         sizeof(for_ever));
    }
    json_decref(negotiate);
    json_decref(greeting);
    json_decref(negotiated);
    return result;
}

json_t *qmp_client_ask(struct qmp_client *client, json_t *command)
{
    json_t *answer = say(client->server, command) ? hear(client->server, "return") : NULL;

    if (!answer) {
        log_error("%s: the server ended without an answer", client->path);
    }
    return answer;
}

void qmp_client_close(struct qmp_client *client)
{
    if (client->server) {
        fclose(client->server);
        client->server = NULL;
    }
}
