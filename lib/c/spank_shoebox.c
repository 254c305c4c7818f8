/*
 * spank_shoebox: sh-run's words as options of srun, sbatch and salloc, and one container for all ranks of a step on a
 * node. See spank_shoebox(8). It decides nothing: sh-run resolves images, reads options and plans.
 *
 *     srun, sbatch, salloc     options -> SHOEBOX_* variables; the image by its digest (sh-run --resolve)
 *     slurmstepd, user_init    if the step's command is sh-run: start it once, as the user, and be given namespaces
 *     each task, task_init     if they were given: the command becomes sh-join, which enters them and executes
 *
 * In slurmstepd this is root's process. What is done there: fork, become the user for good, exec sh-run; receive four
 * descriptors, which are never read, only handed on to the user's own tasks. If anything fails, nothing was changed, and
 * each task runs sh-run by itself, which says what is wrong.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <slurm/spank.h>

#ifndef SH_RUN
#define SH_RUN "/usr/local/bin/sh-run"
#endif
#ifndef SH_JOIN
#define SH_JOIN "/usr/local/libexec/shoebox/sh-join"
#endif

SPANK_PLUGIN(shoebox, 1)

enum { LONGEST = 1 << 14, PATIENCE = 60000, GIVEN = 4, SOCKET = 3, NAME_MAX_ = 75 }; /* bytes; ms; descriptors */
enum { IMAGE, VOLUME, MODULE, ENV, WRITABLE, KINDS };

struct kind {
    const char *name, *variable, *meta, *usage;
    int has_arg;  /* 1: a value, 2: perhaps one */
    char between; /* the values of an option that is given again; 0: the last one counts */
};

static const struct kind KIND[KINDS] = {
    [IMAGE] = {"image", "SHOEBOX_IMAGE", "IMAGE", "the image of every sh-run without one", 1, 0},
    [VOLUME] = {"volume", "SHOEBOX_VOLUME", "SRC:DST[:ro]", "show SRC at DST inside; may be given again", 1, '\n'},
    [MODULE] = {"module", "SHOEBOX_MODULE", "NAME,...", "use these of the site's modules, or none", 1, ','},
    [ENV] = {"env", "SHOEBOX_ENV", "NAME[=VALUE]", "set a variable inside; may be given again", 1, '\n'},
    [WRITABLE] = {"writable", "SHOEBOX_WRITABLE", "SIZE", "let the image be written to, in memory", 2, 0},
};

static char values[KINDS][LONGEST]; /* "" if not given */
static char names[KINDS][NAME_MAX_ + 1];
static int given[GIVEN] = {-1, -1, -1, -1}; /* record, outer user, mount and inner user namespace */

/* Tell whether a text can be one line of a variable, and all of it. */
static bool is_plain(const char *text)
{
    for (const char *at = text; *at; at++)
        if (iscntrl((unsigned char)*at))
            return false;
    return true;
}

/* Take an option's value. Refuses what is too long or has control characters: nothing is cut, nothing escaped. */
static int take(int val, const char *optarg, int remote)
{
    if (remote) /* the variables have come with the job's environment */
        return ESPANK_SUCCESS;
    if (val < 0 || val >= KINDS)
        return ESPANK_BAD_ARG;
    const struct kind *const kind = &KIND[val];
    const char *const text = optarg ? optarg : "50%"; /* tmpfs(5)'s own default */
    char *const all = values[val];
    const size_t used = kind->between ? strlen(all) : 0, more = strlen(text);
    if ((!*text && val != WRITABLE) || !is_plain(text)) {
        slurm_error("shoebox: --%s: %s", names[val], *text ? "a control character in its value" : "no value");
        return ESPANK_BAD_ARG;
    }
    if (used + more + 2 > LONGEST) {
        slurm_error("shoebox: --%s: longer than %d bytes", names[val], LONGEST);
        return ESPANK_BAD_ARG;
    }
    all[used] = kind->between;
    memcpy(all + used + (used > 0), text, more + 1);
    return ESPANK_SUCCESS;
}

int slurm_spank_init(spank_t spank, int ac, char **av)
{
    const char *prefix = "";
    for (int at = 0; at < ac; at++)
        if (strncmp(av[at], "prefix=", 7) == 0)
            prefix = av[at] + 7;
        else {
            slurm_error("shoebox: plugstack.conf: there is prefix=, and no '%s'", av[at]);
            return ESPANK_BAD_ARG;
        }
    if (spank_context() != S_CTX_LOCAL && spank_context() != S_CTX_ALLOCATOR && spank_context() != S_CTX_REMOTE)
        return ESPANK_SUCCESS;
    for (int kind = 0; kind < KINDS; kind++) {
        if (snprintf(names[kind], sizeof names[kind], "%s%s", prefix, KIND[kind].name) > NAME_MAX_) {
            slurm_error("shoebox: plugstack.conf: prefix= is too long");
            return ESPANK_BAD_ARG;
        }
        struct spank_option option = {
            .name = names[kind],
            .arginfo = (char *)(uintptr_t)KIND[kind].meta, /* Slurm's header lacks the const, and copies */
            .usage = (char *)(uintptr_t)KIND[kind].usage,
            .has_arg = KIND[kind].has_arg,
            .val = kind,
            .cb = take,
        };
        const spank_err_t done = spank_option_register(spank, &option);
        if (done != ESPANK_SUCCESS) {
            slurm_error("shoebox: --%s: %s: see prefix= in spank_shoebox(8)", names[kind], spank_strerror(done));
            return ESPANK_ERROR;
        }
    }
    return ESPANK_SUCCESS;
}

/* Have sh-run find an image: its path by digest takes the name's place. What it says on stderr is the error. */
static int resolve(char *name)
{
    int pipe[2];
    char path[LONGEST];
    size_t size = 0;
    ssize_t more = 1;
    int status = -1;
    if (pipe2(pipe, O_CLOEXEC))
        return ESPANK_ERROR;
    const pid_t child = fork();
    if (child == 0) {
        dup2(pipe[1], STDOUT_FILENO);
        execl(SH_RUN, "sh-run", "--resolve", "--image", name, (char *)NULL);
        fprintf(stderr, "shoebox: cannot run %s: %s\n", SH_RUN, strerror(errno));
        _exit(125);
    }
    close(pipe[1]);
    while (child > 0 && size < sizeof path && more > 0) {
        more = read(pipe[0], path + size, sizeof path - size);
        size += more > 0 ? (size_t)more : 0;
    }
    close(pipe[0]);
    while (child > 0 && waitpid(child, &status, 0) < 0 && errno == EINTR)
        ;
    if (status != 0 || more != 0 || size < 2 || path[0] != '/' || path[size - 1] != '\n')
        return ESPANK_ERROR;
    path[size - 1] = '\0';
    if (strlen(path) != size - 1 || !is_plain(path))
        return ESPANK_ERROR;
    memcpy(name, path, size);
    return ESPANK_SUCCESS;
}

/* In srun, sbatch and salloc: set the variables. Under another name too, which --export=NONE lets through. */
int slurm_spank_init_post_opt(spank_t spank, int ac, char **av)
{
    (void)ac, (void)av;
    if (spank_remote(spank))
        return ESPANK_SUCCESS;
    if (*values[IMAGE] && resolve(values[IMAGE]) != ESPANK_SUCCESS) {
        slurm_error("shoebox: --%s: no such image", names[IMAGE]);
        exit(1); /* Slurm would go on without us where plugstack.conf says optional */
    }
    for (int kind = 0; kind < KINDS; kind++) {
        char other[64];
        snprintf(other, sizeof other, "SLURM_%s", KIND[kind].variable);
        if (*values[kind] && (setenv(KIND[kind].variable, values[kind], 1) || setenv(other, values[kind], 1)))
            exit(1);
    }
    return ESPANK_SUCCESS;
}

/* Tell whether a command is sh-run, the one that we would start. */
static bool is_sh_run(const char *command)
{
    struct stat ours, theirs;
    if (!strchr(command, '/'))
        return strcmp(command, "sh-run") == 0;
    return !stat(SH_RUN, &ours) && !stat(command, &theirs) && ours.st_dev == theirs.st_dev &&
           ours.st_ino == theirs.st_ino;
}

/* In a child of slurmstepd: become the user for good, and sh-run. The groups are the user's already. */
static _Noreturn void become_sh_run(uid_t uid, gid_t gid, int socket, char **argv, char **env)
{
    sigset_t none;
    uid_t r, e, s;
    const int null = open("/dev/null", O_RDWR);
    const int high = fcntl(socket, F_DUPFD, SOCKET + 1); /* so that no dup2 below meets it */
    sigemptyset(&none);
    if (null < 0 || high < 0 || seteuid(0) || setresgid(gid, gid, gid) || setresuid(uid, uid, uid) ||
        getresuid(&r, &e, &s) || r != uid || e != uid || s != uid || (uid && !seteuid(0)))
        _exit(125);
    for (int fd = 0; fd < SOCKET; fd++)
        if (dup2(null, fd) < 0)
            _exit(125);
    if (dup2(high, SOCKET) < 0 || syscall(SYS_close_range, SOCKET + 1, ~0U, 0) || /* slurmstepd's own */
        setpgid(0, 0) || sigprocmask(SIG_SETMASK, &none, NULL))
        _exit(125);
    for (int signal_ = 1; signal_ < NSIG; signal_++)
        signal(signal_, SIG_DFL);
    execve(SH_RUN, argv, env);
    _exit(125);
}

/* Receive the descriptors, or none. */
static void receive(int socket)
{
    char byte;
    union {
        char space[CMSG_SPACE(sizeof given)];
        struct cmsghdr align;
    } control = {{0}};
    struct iovec data = {&byte, 1};
    struct msghdr message = {
        .msg_iov = &data, .msg_iovlen = 1, .msg_control = control.space, .msg_controllen = sizeof control.space};
    struct pollfd ready = {.fd = socket, .events = POLLIN};
    if (poll(&ready, 1, PATIENCE) != 1 || recvmsg(socket, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT) != 1)
        return;
    const struct cmsghdr *const head = CMSG_FIRSTHDR(&message);
    if (!head || head->cmsg_level != SOL_SOCKET || head->cmsg_type != SCM_RIGHTS)
        return;
    int found[GIVEN];
    const size_t size = head->cmsg_len - CMSG_LEN(0);
    if (size > sizeof found)
        return;
    memcpy(found, CMSG_DATA(head), size);
    if (size == sizeof found && !(message.msg_flags & MSG_CTRUNC)) /* cut off: there were more of them */
        memcpy(given, found, size);
    else
        for (size_t at = 0; at < size / sizeof *found; at++)
            close(found[at]);
}

/* In slurmstepd, as the user but for the real uid, in the step's directory, before there are tasks. */
int slurm_spank_user_init(spank_t spank, int ac, char **av)
{
    (void)ac, (void)av;
    int argc = 0, pair[2], status;
    char **argv = NULL, **env = NULL, value[LONGEST], other[64];
    uid_t uid;
    gid_t gid;
    for (int kind = 0; kind < KINDS; kind++) {
        snprintf(other, sizeof other, "SLURM_%s", KIND[kind].variable);
        if (spank_getenv(spank, other, value, sizeof value) == ESPANK_SUCCESS)
            spank_setenv(spank, KIND[kind].variable, value, 0);
    }
    if (spank_get_item(spank, S_JOB_ARGV, &argc, &argv) != ESPANK_SUCCESS || argc < 1 || !is_sh_run(argv[0]) ||
        spank_get_item(spank, S_JOB_ENV, &env) != ESPANK_SUCCESS || !env ||
        spank_get_item(spank, S_JOB_UID, &uid) != ESPANK_SUCCESS ||
        spank_get_item(spank, S_JOB_GID, &gid) != ESPANK_SUCCESS || access(SH_JOIN, X_OK))
        return ESPANK_SUCCESS;
    size_t count = 0;
    while (env[count])
        count++;
    char **const more = calloc(count + 2, sizeof *more); /* before fork: there are other threads */
    if (!more)
        return ESPANK_SUCCESS;
    memcpy(more, env, count * sizeof *more);
    snprintf(other, sizeof other, "SHOEBOX_GIVE=%d", SOCKET);
    more[count] = other;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == 0) {
        const pid_t child = fork();
        if (child == 0)
            become_sh_run(uid, gid, pair[1], argv, more);
        close(pair[1]);
        if (child > 0) {
            receive(pair[0]);
            kill(child, SIGKILL); /* it has given what it has, or is late */
            while (waitpid(child, &status, 0) < 0 && errno == EINTR)
                ;
        }
        close(pair[0]);
    }
    free(more);
    return ESPANK_SUCCESS;
}

/* In each task, as the user, before it executes. */
int slurm_spank_task_init(spank_t spank, int ac, char **av)
{
    (void)ac, (void)av;
    int argc = 0;
    char **argv = NULL, value[64];
    if (given[0] < 0 || spank_get_item(spank, S_JOB_ARGV, &argc, &argv) != ESPANK_SUCCESS || argc < 1 ||
        !is_sh_run(argv[0]))
        return ESPANK_SUCCESS;
    snprintf(value, sizeof value, "%d,%d,%d,%d", given[0], given[1], given[2], given[3]);
    if (spank_setenv(spank, "SHOEBOX_STEP", value, 1) != ESPANK_SUCCESS)
        return ESPANK_SUCCESS;
    for (int at = 0; at < GIVEN; at++)
        fcntl(given[at], F_SETFD, 0);
    static char join[] = SH_JOIN;
    argv[0] = join; /* of this process only; what stands behind it counts no more */
    return ESPANK_SUCCESS;
}
