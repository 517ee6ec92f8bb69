/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Directories are opened for the sandbox while the server is still who it was when it started.
 */
#include "service/confine.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io/account.h"
#ifdef QCOWD_BREAK_CONTROL
#include "debug/attack.h"
#endif
#include "base/check.h"
#include "base/log.h"
#include "sched/co.h"
#include "sched/loop.h"
#include "service/loops.h"

/* SIGHUP reads these again. */
static int allow_credentials(struct sandbox *sandbox, const struct tls_config *tls,
                             struct errtext *err)
{
    int result = 0;
    if (tls->certificates) {
        result = sandbox_allow(sandbox, tls->certificates, SANDBOX_READ, err);
    }
    if (result == 0 && tls->certificates) {
        result = sandbox_allow_links(sandbox, tls->certificates, SANDBOX_READ, err);
    }
    if (result == 0 && tls->psk_file) {
        result = sandbox_allow_around(sandbox, tls->psk_file, SANDBOX_READ, err);
    }
    return result;
}

/* Images beside this one may be wanted later; but not all devices. */
static int allow_beside(struct sandbox *sandbox, const struct export_config *export,
                        struct errtext *err)
{
    struct stat status;
    const unsigned access = SANDBOX_READ | SANDBOX_WRITE; /* read-only can change, too */
    if (stat(export->image, &status) < 0) {
        return 0; /* opening it will say so, and better */
    }
    return S_ISREG(status.st_mode) ? sandbox_allow_around(sandbox, export->image, access, err)
                                   : sandbox_allow(sandbox, export->image, access, err);
}

/* Rules name users and groups. What looks them up is loaded now, as it cannot be later. */
static int allow_accounts(struct sandbox *sandbox, struct errtext *err)
{
    static const char *const files[] = {"/etc/nsswitch.conf", "/etc/passwd", "/etc/group"};
    int result = 0;
    account_prepare();
    for (unsigned i = 0; i < ARRAY_LEN(files) && result == 0; i++) {
        if (access(files[i], R_OK) == 0) {
            result = sandbox_allow(sandbox, files[i], SANDBOX_READ, err);
        }
    }
    return result;
}

/* Keys are read when an image is opened, which may be again. */
static int allow_keys(struct sandbox *sandbox, const struct export_config *export,
                      struct errtext *err)
{
    int result = 0;
    for (unsigned i = 0; i < export->key_files.count && result == 0; i++) {
        char *path = key_file_path(export->key_files.names[i]);
        if (path && access(path, R_OK) == 0) {
            result = sandbox_allow_around(sandbox, path, SANDBOX_READ, err);
        }
        free(path);
    }
    return result;
}

/* What exports that come while the server runs may name. */
static int allow_changes(struct sandbox *sandbox, const struct export_configs *exports,
                         struct errtext *err)
{
    int result = 0;
    for (unsigned i = 0; i < exports->count && result == 0; i++) {
        result = allow_beside(sandbox, &exports->list[i], err);
        if (result == 0) {
            result = allow_keys(sandbox, &exports->list[i], err);
        }
    }
    return result < 0 ? result : allow_accounts(sandbox, err);
}

static int allow_files(struct sandbox *sandbox, const struct serve_config *config, bool controlled,
                       const struct export_configs *exports, struct errtext *err)
{
    int result = 0;
    if (config->config_file) {
        result = sandbox_allow_around(sandbox, config->config_file, SANDBOX_READ, err);
    }
    if (result == 0 && (config->config_file || controlled)) {
        result = allow_changes(sandbox, exports, err);
    }
    if (result == 0 && config->tls_mode != NBD_TLS_OFF) {
        result = allow_credentials(sandbox, &config->tls, err);
    }
    for (unsigned i = 0; i < config->sandbox.allowed_count && result == 0; i++) {
        result =
            sandbox_allow(sandbox, config->sandbox.allowed[i], SANDBOX_READ | SANDBOX_WRITE, err);
    }
    return result;
}

int confinement_begin(struct confinement *confinement, const struct serve_config *config,
                      bool controlled, const struct export_configs *exports, struct errtext *err)
{
    struct sandbox_simulation simulation = {.landlock_abi = 0};
    int result = 0;
    *confinement = (struct confinement){.config = config};
#ifdef QCOWD_BREAK_CONTROL
    attack_simulation(&simulation);
#endif
    if (config->sandbox.user) {
        result = identity_find(&confinement->identity, config->sandbox.user, err);
        confinement->changes_user = result == 0;
    }
    if (result == 0) {
        result = sandbox_create(&confinement->sandbox, config->sandbox.mode, config->run != NULL,
                                &simulation, err);
    }
    if (result == 0) {
        result = allow_files(confinement->sandbox, config, controlled, exports, err);
    }
    return result;
}

struct becoming {
    const struct confinement *confinement;
    const struct confinement_leavings *leavings;
    struct errtext *err;
    int result;
};

/* The command of --run becomes that user, too, and uses them. */
static int give_away(const struct confinement_leavings *leavings, const struct identity *identity,
                     struct errtext *err)
{
    if (leavings->directory && (chown(leavings->directory, identity->uid, identity->gid) < 0 ||
                                chown(leavings->socket, identity->uid, identity->gid) < 0)) {
        return err_set(err, errno, "--user: cannot give %s away: %s", leavings->directory,
                       strerror(errno));
    }
    return 0;
}

static void become_user(void *arg)
{
    struct becoming *becoming = arg;
    const struct identity *identity = &becoming->confinement->identity;
    becoming->result = give_away(becoming->leavings, identity, becoming->err);
    if (becoming->result < 0) {
        return;
    }
    /* The command of --run keeps what programs can get by being executed. */
    if (!becoming->confinement->config->run) {
        capabilities_drop_bounding();
    }
    becoming->result = identity_assume(identity, becoming->err);
}

int confinement_become_user(struct confinement *confinement,
                            const struct confinement_leavings *leavings, struct errtext *err)
{
    if (!confinement->changes_user) {
        return 0;
    }
    struct becoming becoming = {.confinement = confinement, .leavings = leavings, .err = err};
    coro_call_on_driver(become_user, &becoming);
    if (becoming.result == 0) {
        log_info("user %u, group %u from now on", (unsigned)confinement->identity.uid,
                 (unsigned)confinement->identity.gid);
    }
    return becoming.result;
}

static int allow_removing(struct sandbox *sandbox, const struct confinement_leavings *leavings,
                          struct errtext *err)
{
    int result = 0;
    if (leavings->socket) {
        result = sandbox_allow_around(sandbox, leavings->socket, SANDBOX_REMOVE_FILES, err);
    }
    if (result == 0 && leavings->control_socket) {
        result = sandbox_allow_around(sandbox, leavings->control_socket, SANDBOX_REMOVE_FILES, err);
    }
    if (result == 0 && leavings->metrics_socket) {
        result = sandbox_allow_around(sandbox, leavings->metrics_socket, SANDBOX_REMOVE_FILES, err);
    }
    if (result == 0 && leavings->pid_file) {
        result = sandbox_allow_around(sandbox, leavings->pid_file, SANDBOX_REMOVE_FILES, err);
    }
    if (result == 0 && leavings->directory) {
        result =
            sandbox_allow_around(sandbox, leavings->directory, SANDBOX_REMOVE_DIRECTORIES, err);
    }
    return result;
}

static int enter_thread(const struct confinement *confinement, struct loop *loop,
                        struct errtext *err)
{
    int result = sandbox_enter_thread(confinement->sandbox, err);
    if (result == 0 && confinement->config->sandbox.mode != SANDBOX_OFF) {
        result = loop_renew_workers(loop);
        if (result < 0) {
            err_set(err, -result, "cannot start worker threads in the sandbox: %s",
                    strerror(-result));
        }
    }
    return result;
}

struct entering {
    struct confinement *confinement;
    struct loop *loop;
    const struct confinement_leavings *leavings;
    pid_t command;
    struct errtext *err;
    int result;
};

static void enter_main_thread(void *arg)
{
    struct entering *entering = arg;
    struct sandbox *sandbox = entering->confinement->sandbox;
    int result = allow_removing(sandbox, entering->leavings, entering->err);
    if (result == 0) {
        sandbox_signals_to(sandbox, entering->command);
        result = sandbox_seal(sandbox, entering->err);
    }
    if (result == 0) {
        result = enter_thread(entering->confinement, entering->loop, entering->err);
    }
    entering->result = result;
}

static void enter_other_thread(void *arg)
{
    struct entering *entering = arg;
    entering->result = enter_thread(entering->confinement, entering->loop, entering->err);
}

int co_confinement_enter(struct confinement *confinement, struct loops *loops,
                         const struct confinement_leavings *leavings, pid_t command,
                         struct errtext *err)
{
    struct entering entering = {
        .confinement = confinement,
        .loop = loops_main(loops)->runtime.loop,
        .leavings = leavings,
        .command = command,
        .err = err,
    };
    coro_call_on_driver(enter_main_thread, &entering);
    for (unsigned i = 1; i < loops->count && entering.result == 0; i++) {
        entering.loop = loops->loops[i].runtime.loop;
        int called = co_loops_call(&loops->loops[i], enter_other_thread, &entering);
        if (called < 0) {
            return err_set(err, -called, "out of memory");
        }
    }
    return entering.result;
}

const char *confinement_hint(const struct confinement *confinement, int result)
{
    if (result != -EACCES || confinement->config->sandbox.mode == SANDBOX_OFF) {
        return "";
    }
    return " (the sandbox shuts all directories but those that it needed at the start: name others "
           "with --sandbox-allow)";
}

void confinement_end(struct confinement *confinement)
{
    sandbox_free(confinement->sandbox);
    identity_free(&confinement->identity);
}
