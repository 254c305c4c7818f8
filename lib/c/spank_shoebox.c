/*
 * spank_shoebox: sh-run's words as options of srun, sbatch and salloc, and one container for all ranks of a job on a
 * node. See spank_shoebox(8). It decides nothing: sh-run resolves images, reads options and plans.
 *
 *     srun, sbatch, salloc     options -> SHOEBOX_* variables; the image by its digest (sh-run --resolve)
 *     slurmd, job_prolog       a directory, which says that there will be an epilog
 *     slurmstepd, user_init    if the step's command is sh-run: start it once, as the user, and be given namespaces;
 *                              those that later steps may enter are kept there (pin)
 *     each task, task_init     if they were given: the command becomes sh-join, which enters them and executes
 *     slurmd, job_epilog       the directory and all in it away
 *
 * In slurmstepd this is root's process. What is done there: fork, become the user for good, exec sh-run; receive
 * descriptors, which are only handed on to the user's own tasks; bind two of them, if they are namespaces, to files in
 * the directory, and copy a third beside them. Nothing of an image is mounted, opened or looked at. If anything fails,
 * nothing was changed, and each task runs sh-run by itself, which says what is wrong.
 *
 * Why in the first step and not in the prolog: only then is the job's own /tmp there (job_container/tmpfs), are its
 * user's tickets, and is it known that the job wants a container; and a prolog that fails would drain the node.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <slurm/spank.h>

#ifndef SH_RUN
#define SH_RUN "/usr/local/bin/sh-run"
#endif
#ifndef SHIFTER
#define SHIFTER "/usr/local/bin/shifter"
#endif
#ifndef SH_JOIN
#define SH_JOIN "/usr/local/libexec/shoebox/sh-join"
#endif

SPANK_PLUGIN(shoebox, 1)

#define PINS "/run/shoebox" /* JOB/container/{left,mnt,user} */

enum { LONGEST = 1 << 14, PATIENCE = 60000, LEAVING = 500, NAME_MAX_ = 75 }; /* bytes; ms; ms; bytes */
enum { RECORD, OUTER, MNT, USER, GIVEN, LEFT = GIVEN, MOST };                /* descriptors, as sh-run gives them */
enum { SOCKET = 3, PASSED = 4, LARGEST = 1 << 20 }; /* what sh-run gets: from 3 on, at most so many; bytes */
enum { IMAGE, VOLUME, CACHE, MODULE, ENV, WRITABLE, KINDS, PYXIS_IMAGE = KINDS, PYXIS_MOUNTS, OPTIONS };

struct kind {
    const char *name, *variable, *meta, *usage;
    int has_arg;  /* 1: a value, 2: perhaps one */
    char between; /* the values of an option that is given again; 0: the last one counts */
};

static const struct kind KIND[OPTIONS] = {
    [IMAGE] = {"image", "SHOEBOX_IMAGE", "IMAGE", "the image of every sh-run without one", 1, 0},
    [VOLUME] = {"volume", "SHOEBOX_VOLUME", "SRC:DST[:ro]", "show SRC at DST inside; may be given again", 1, '\n'},
    [CACHE] = {"node-cache", "SHOEBOX_NODE_CACHE", "DST:size=SIZE[,on=DIR]", "an empty file system of the node at DST",
               1, '\n'},
    [MODULE] = {"module", "SHOEBOX_MODULE", "NAME,...", "use these of the site's modules, or none", 1, ','},
    [ENV] = {"env", "SHOEBOX_ENV", "NAME[=VALUE]", "set a variable inside; may be given again", 1, '\n'},
    [WRITABLE] = {"writable", "SHOEBOX_WRITABLE", "SIZE", "let the image be written to, in memory", 2, 0},
    [PYXIS_IMAGE] = {"container-image", NULL, "IMAGE", "run the step's command in this image", 1, 0},
    [PYXIS_MOUNTS] = {"container-mounts", NULL, "SRC:DST[:ro],...", "show SRC at DST inside", 1, '\n'},
};

static char values[KINDS][LONGEST]; /* "" if not given */
static char names[OPTIONS][NAME_MAX_ + 1];
static bool shifter, pyxis;         /* words of plugstack.conf */
static const char *containers = ""; /* likewise: where job_container/tmpfs has its namespaces */
static bool wrapped;                /* the step's command runs inside, whatever it is */
static bool told;                   /* the variables are set: Slurm asks once for each part of a heterogeneous job */
static int place = -1;              /* the mount namespace that job_container/tmpfs made for the job */
static int passed[PASSED] = {-1, -1, -1, -1}; /* to sh-run: a socket, and what is kept for the job */
static ino_t there;                           /* the mount namespace that sh-run was started in */
static int given[MOST] = {-1, -1, -1, -1, -1};
static int server = -1; /* a socket that what serves the step's image has open, too */
static uint32_t ended;  /* tasks */

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
    if (val < 0 || val >= OPTIONS)
        return ESPANK_BAD_ARG;
    wrapped = wrapped || val == PYXIS_IMAGE;
    if (remote) /* the variables have come with the job's environment */
        return ESPANK_SUCCESS;
    if (told) {
        slurm_error("shoebox: --%s: say it before the first ':', it counts for all of a heterogeneous job", names[val]);
        return ESPANK_BAD_ARG;
    }
    const struct kind *const kind = &KIND[val];
    const char *const text = optarg ? optarg : "50%"; /* tmpfs(5)'s own default */
    char *const all = values[val == PYXIS_IMAGE ? IMAGE : val == PYXIS_MOUNTS ? VOLUME : val];
    const size_t used = kind->between ? strlen(all) : 0, more = strlen(text);
    if (!*text || !is_plain(text)) {
        slurm_error("shoebox: --%s: %s", names[val], *text ? "a control character in its value" : "no value");
        return ESPANK_BAD_ARG;
    }
    if (used + more + 2 > LONGEST) {
        slurm_error("shoebox: --%s: longer than %d bytes", names[val], LONGEST);
        return ESPANK_BAD_ARG;
    }
    all[used] = kind->between;
    memcpy(all + used + (used > 0), text, more + 1);
    for (char *at = all + used; val == PYXIS_MOUNTS && *at; at++)
        *at = *at == ',' ? '\n' : *at;
    return ESPANK_SUCCESS;
}

int slurm_spank_init(spank_t spank, int ac, char **av)
{
    const char *prefix = "";
    for (int at = 0; at < ac; at++)
        if (strncmp(av[at], "prefix=", 7) == 0)
            prefix = av[at] + 7;
        else if (strncmp(av[at], "containers=/", 12) == 0)
            containers = av[at] + 11;
        else if (strcmp(av[at], "shifter") == 0)
            shifter = true;
        else if (strcmp(av[at], "pyxis") == 0)
            pyxis = true;
        else {
            slurm_error("shoebox: plugstack.conf: no such word, see spank_shoebox(8): '%s'", av[at]);
            return ESPANK_BAD_ARG;
        }
    if (spank_context() != S_CTX_LOCAL && spank_context() != S_CTX_ALLOCATOR && spank_context() != S_CTX_REMOTE)
        return ESPANK_SUCCESS;
    const int options = pyxis && spank_context() != S_CTX_ALLOCATOR ? OPTIONS : KINDS;
    for (int kind = 0; kind < options; kind++) {
        if (snprintf(names[kind], sizeof names[kind], "%s%s", kind < KINDS ? prefix : "", KIND[kind].name) >
            NAME_MAX_) {
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
static int resolve(const char *program, char *name)
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
        execl(program, program, "--resolve", "--image", name, (char *)NULL);
        fprintf(stderr, "shoebox: cannot run %s: %s\n", program, strerror(errno));
        _exit(125);
    }
    close(pipe[1]);
    while (child > 0 && size < sizeof path && more > 0) {
        more = read(pipe[0], path + size, sizeof path - size);
        size += more > 0 ? (size_t)more : 0;
    }
    close(pipe[0]);
    pid_t waited = -1;
    while (child > 0 && (waited = waitpid(child, &status, 0)) < 0 && errno == EINTR)
        ;
    const bool unknown = waited < 0 && errno == ECHILD; /* our caller ignores SIGCHLD: then what it said has to do */
    if ((status != 0 && !unknown) || more != 0 || size < 2 || path[0] != '/' || path[size - 1] != '\n')
        return ESPANK_ERROR;
    path[size - 1] = '\0';
    if (strlen(path) != size - 1 || !is_plain(path))
        return ESPANK_ERROR;
    memcpy(name, path, size);
    return ESPANK_SUCCESS;
}

/* In slurmstepd, as root, before there are tasks: if they will be elsewhere, open that. A Slurm that was built for
 * several slurmd on a node has a directory for each, by the node's name. */
static void find_place(spank_t spank)
{
    char path[LONGEST], node[256] = "";
    uint32_t job;
    if (!*containers || spank_get_item(spank, S_JOB_ID, &job) != ESPANK_SUCCESS)
        return;
    for (int named = 0; named < 2 && place < 0; named++) {
        if (named && gethostname(node, sizeof node))
            return;
        node[strcspn(node, ".")] = '\0';
        if (snprintf(path, sizeof path, "%s/%s/%u/.ns", containers, node, job) < (int)sizeof path)
            place = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW);
    }
}

/* Tell whether this srun was told --multi-prog: then tasks have commands that we do not see. */
static bool is_multi_prog(void)
{
    static const char option[] = "--multi-prog";
    char words[LONGEST];
    const int fd = open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
    const ssize_t size = fd < 0 ? 0 : read(fd, words, sizeof words - 1);
    close(fd);
    words[size > 0 ? size : 0] = '\0';
    for (const char *at = words; at < words + size; at += strlen(at) + 1)
        if (strlen(at) > 3 && strncmp(at, option, strlen(at)) == 0) /* short forms are good, too */
            return true;
    return getenv("SLURM_MULTI_PROG") != NULL;
}

/* Have Slurm forget an option. Else each srun in the job is given it anew: the image by a name that may lead elsewhere by
 * then, and of several values the last. */
static void forget(spank_t spank, const char *name)
{
    char other[NAME_MAX_ + 64];
    snprintf(other, sizeof other, "_SLURM_SPANK_OPTION_shoebox_%.*s", NAME_MAX_, name);
    for (char *at = other; *at; at++)
        *at = isalnum((unsigned char)*at) ? *at : '_';
    spank_job_control_unsetenv(spank, other);
}

/* Write the path of what is kept for a job, or of a file in it. */
static void pinned(char path[64], uint32_t job, const char *name)
{
    snprintf(path, 64, PINS "/%u/container%s%s", job, *name ? "/" : "", name);
}

/* Likewise: open what is kept for the job, all of it or nothing. Nobody else can: who has it open keeps it alive. */
static void find_kept(spank_t spank)
{
    static const char *const files[] = {"left", "mnt", "user"}; /* after the socket's */
    struct stat about;
    char path[64];
    uint32_t job;
    uid_t uid;
    if (spank_get_item(spank, S_JOB_ID, &job) != ESPANK_SUCCESS ||
        spank_get_item(spank, S_JOB_UID, &uid) != ESPANK_SUCCESS)
        return;
    for (int at = 0; at < PASSED - 1; at++) {
        pinned(path, job, files[at]);
        passed[at + 1] = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
        if (passed[at + 1] < 0 || (at == 0 && (fstat(passed[1], &about) || about.st_uid != uid))) {
            passed[1] = -1;
            return;
        }
    }
}

/* In srun, sbatch and salloc: set the variables. Under another name too, which --export=NONE lets through. */
int slurm_spank_init_post_opt(spank_t spank, int ac, char **av)
{
    (void)ac, (void)av;
    if (spank_context() == S_CTX_REMOTE) {
        find_place(spank);
        find_kept(spank);
    }
    if ((spank_context() != S_CTX_LOCAL && spank_context() != S_CTX_ALLOCATOR) || told)
        return ESPANK_SUCCESS;
    told = true;
    if (wrapped && is_multi_prog()) {
        slurm_error("shoebox: --%s: not with --multi-prog: begin its lines with sh-run", names[PYXIS_IMAGE]);
        exit(1);
    }
    if (shifter && *values[IMAGE] && setenv("SLURM_SPANK_SHIFTER_IMAGEREQUEST", values[IMAGE], 1))
        exit(1);
    if (*values[IMAGE] && resolve(shifter && !wrapped ? SHIFTER : SH_RUN, values[IMAGE]) != ESPANK_SUCCESS) {
        slurm_error("shoebox: --%s: no such image", names[wrapped ? PYXIS_IMAGE : IMAGE]);
        exit(1); /* Slurm would go on without us where plugstack.conf says optional */
    }
    for (int kind = 0; kind < KINDS; kind++) {
        char other[64];
        snprintf(other, sizeof other, "SLURM_%s", KIND[kind].variable);
        if (*values[kind] && (setenv(KIND[kind].variable, values[kind], 1) || setenv(other, values[kind], 1)))
            exit(1);
        forget(spank, names[kind]);
    }
    return ESPANK_SUCCESS;
}

/* Return which program of ours a command is: by its name, or by the path of the one that we would start. */
static const char *ours(const char *command)
{
    static const char *const programs[] = {SH_RUN, SHIFTER};
    struct stat our, their;
    for (size_t at = 0; at < (shifter ? 2 : 1); at++)
        if (!strchr(command, '/') ? strcmp(command, strrchr(programs[at], '/') + 1) == 0
                                  : !stat(programs[at], &our) && !stat(command, &their) && our.st_dev == their.st_dev &&
                                        our.st_ino == their.st_ino)
            return programs[at];
    return wrapped ? SH_RUN : NULL;
}

/* In a child of slurmstepd: become the user for good, where the tasks will be, and sh-run, which gets the descriptors
 * from 3 on. The groups are the user's already. */
static _Noreturn void become(const char *program, uid_t uid, gid_t gid, const char *cwd, char **argv, char **env)
{
    sigset_t none;
    uid_t r, e, s;
    int high[PASSED], count = 0;
    const int null = open("/dev/null", O_RDWR);
    const int oom =
        seteuid(0) ? -1 : open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC); /* slurmstepd's is -1000 */
    for (; count < PASSED && passed[count] >= 0; count++)
        if ((high[count] = fcntl(passed[count], F_DUPFD, SOCKET + PASSED)) < 0) /* so that no dup2 below meets it */
            _exit(125);
    sigemptyset(&none);
    if (null < 0 || oom < 0 || write(oom, "0", 1) != 1 || (place >= 0 && setns(place, CLONE_NEWNS)) ||
        setresgid(gid, gid, gid) || setresuid(uid, uid, uid) || getresuid(&r, &e, &s) || r != uid || e != uid ||
        s != uid || (uid && !seteuid(0)) || (place >= 0 && chdir(cwd))) /* for setns went to the root */
        _exit(125);
    for (int fd = 0; fd < SOCKET; fd++)
        if (dup2(null, fd) < 0)
            _exit(125);
    for (int at = 0; at < count; at++)
        if (dup2(high[at], SOCKET + at) < 0)
            _exit(125);
    if (syscall(SYS_close_range, SOCKET + count, ~0U, 0) || /* slurmstepd's own */
        setpgid(0, 0) || sigprocmask(SIG_SETMASK, &none, NULL))
        _exit(125);
    for (int signal_ = 1; signal_ < NSIG; signal_++)
        signal(signal_, SIG_DFL);
    execve(program, argv, env);
    _exit(125);
}

/* Receive the descriptors: all, or none. They are of the user's making, and not looked at. */
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
    int found[MOST + 1]; /* for the alignment leaves room for one more */
    const size_t size = head->cmsg_len - CMSG_LEN(0), count = size / sizeof *found;
    if (size > sizeof found)
        return;
    memcpy(found, CMSG_DATA(head), size);
    if (count >= GIVEN && count <= MOST && !(message.msg_flags & MSG_CTRUNC)) /* cut off: there were more of them */
        memcpy(given, found, count * sizeof *found);
    else
        for (size_t at = 0; at < count; at++)
            close(found[at]);
}

/* As root: let go of what is kept for a job. With the mount go those in it; nobody else can write there. */
static void unpin(uint32_t job)
{
    char path[64];
    pinned(path, job, "");
    umount2(path, MNT_DETACH | UMOUNT_NOFOLLOW);
    rmdir(path);
}

/* As root, in a child: bind the namespaces where the job's other steps find them, and copy what sh-run left. The first
 * step that comes is it; no directory of the prolog's: there will be no epilog. What the user gave may be anything, of
 * a file system of their own too: readlink(2) and F_GET_SEALS ask that nothing, and tell namespaces and memory. */
static bool pin(uint32_t job, uid_t uid)
{
    static const struct {
        int fd;
        const char *name, *is;
    } kept[] = {{MNT, "mnt", "mnt:["}, {USER, "user", "user:["}};
    char path[64], from[32], is[64], last[64];
    struct stat about;
    pinned(path, job, "");
    if (seteuid(0) || mkdir(path, 0700))
        return true;
    if (mount("shoebox", path, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=700,size=2m,nr_inodes=8") ||
        mount(NULL, path, NULL, MS_PRIVATE, NULL)) /* else the next would propagate, which namespaces must not */
        return false;
    for (size_t at = 0; at < sizeof kept / sizeof *kept; at++) {
        snprintf(from, sizeof from, "/proc/self/fd/%d", given[kept[at].fd]);
        pinned(path, job, kept[at].name);
        const ssize_t size = readlink(from, is, sizeof is - 1);
        const int file = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0400);
        if (size < 0 || strncmp(is, kept[at].is, strlen(kept[at].is)) != 0 || file < 0 ||
            mount(from, path, NULL, MS_BIND, NULL))
            return false;
    }
    pinned(path, job, ".part-left");
    pinned(last, job, "left");
    const int file = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0400);
    if (file < 0 || fcntl(given[LEFT], F_GET_SEALS) < 0 || fstat(given[LEFT], &about) || about.st_size > LARGEST)
        return false;
    for (off_t at = 0; at < about.st_size;)
        if (sendfile(file, given[LEFT], &at, (size_t)(about.st_size - at)) <= 0)
            return false;
    return !fchown(file, uid, (gid_t)-1) && !rename(path, last);
}

/* Start sh-run, as the user, and receive. */
static void ask(const char *program, uid_t uid, gid_t gid, const char *cwd, char **argv, char **env)
{
    int pair[2], status;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
        return;
    passed[0] = pair[1];
    const pid_t child = fork();
    if (child == 0)
        become(program, uid, gid, cwd, argv, env);
    close(pair[1]);
    if (child > 0) {
        receive(pair[0]);
        kill(-child, SIGKILL); /* it has given what it has, or is late, it and what it has started */
        kill(child, SIGKILL);
        while (waitpid(child, &status, 0) < 0 && errno == EINTR)
            ;
    }
    server = pair[0];
}

/* Keep what sh-run has left for the job's other steps. */
static void keep(uint32_t job, uid_t uid)
{
    int status;
    const pid_t child = fork();
    if (child == 0) {
        if (!pin(job, uid))
            unpin(job);
        _exit(0);
    }
    while (child > 0 && waitpid(child, &status, 0) < 0 && errno == EINTR)
        ;
    close(given[LEFT]);
    close(server); /* it may serve the job's other steps */
    server = -1;
}

/* In slurmstepd, as the user but for the real uid, in the step's directory, before there are tasks. */
int slurm_spank_user_init(spank_t spank, int ac, char **av)
{
    (void)ac, (void)av;
    int argc = 0;
    char **argv = NULL, **env = NULL, value[LONGEST], other[64], pmix[PATH_MAX], cwd[PATH_MAX];
    const char *program;
    struct stat about;
    uint32_t job;
    uid_t uid;
    gid_t gid;
    for (int kind = 0; kind < KINDS; kind++) {
        snprintf(other, sizeof other, "SLURM_%s", KIND[kind].variable);
        if (spank_getenv(spank, other, value, sizeof value) == ESPANK_SUCCESS)
            spank_setenv(spank, KIND[kind].variable, value, 0);
    }
    if (spank_get_item(spank, S_JOB_ARGV, &argc, &argv) != ESPANK_SUCCESS || argc < 1 || !(program = ours(argv[0])) ||
        spank_get_item(spank, S_JOB_ENV, &env) != ESPANK_SUCCESS || !env ||
        spank_get_item(spank, S_JOB_ID, &job) != ESPANK_SUCCESS ||
        spank_get_item(spank, S_JOB_UID, &uid) != ESPANK_SUCCESS ||
        spank_get_item(spank, S_JOB_GID, &gid) != ESPANK_SUCCESS || access(SH_JOIN, X_OK) ||
        (place < 0 ? stat("/proc/self/ns/mnt", &about) : fstat(place, &about)) || !getcwd(cwd, sizeof cwd) ||
        (wrapped && spank_getenv(spank, "SHOEBOX_IMAGE", value, sizeof value) != ESPANK_SUCCESS))
        return ESPANK_SUCCESS;
    there = about.st_ino;
    size_t count = 0;
    while (env[count])
        count++;
    char **const more = calloc(count + 3, sizeof *more); /* before fork: there are other threads */
    char **const words = calloc((size_t)argc + 4, sizeof *words);
    if (more && words) {
        static char run[] = SH_RUN, end[] = "--";
        memcpy(more, env, count * sizeof *more);
        snprintf(other, sizeof other, "SHOEBOX_GIVE=%s", passed[1] < 0 ? "3" : "3,4,5,6");
        more[count++] = other;
        /* Tasks will have it; so far only slurmstepd does, for its PMIx server. The directory has to be inside. */
        const char *const tmpdir = getenv("PMIX_SERVER_TMPDIR");
        if (tmpdir && snprintf(pmix, sizeof pmix, "PMIX_SERVER_TMPDIR=%s", tmpdir) < (int)sizeof pmix)
            more[count] = pmix;
        memcpy(words, (char *[]){run, value, end}, 3 * sizeof *words);
        memcpy(words + 3, argv, (size_t)argc * sizeof *words);
        ask(program, uid, gid, cwd, wrapped ? words : words + 3, more);
    }
    if (given[LEFT] >= 0)
        keep(job, uid);
    for (int at = 1; at < PASSED && passed[1] >= 0; at++)
        close(passed[at]);
    free(more);
    free(words);
    return ESPANK_SUCCESS;
}

/* In each task, as the user, before it executes. */
int slurm_spank_task_init(spank_t spank, int ac, char **av)
{
    (void)ac, (void)av;
    int argc = 0;
    char **argv = NULL, value[64];
    struct stat about;
    if (spank_get_item(spank, S_JOB_ARGV, &argc, &argv) != ESPANK_SUCCESS || argc < 1 || !ours(argv[0]))
        return ESPANK_SUCCESS;
    static char join[] = SH_JOIN;
    if (given[RECORD] < 0 || stat("/proc/self/ns/mnt", &about) || about.st_ino != there) {
        if (wrapped) { /* must not run outside: sh-join starts sh-run, as far as there is an sh-join */
            if (spank_setenv(spank, "SHOEBOX_INSTEAD", argv[0], 1) != ESPANK_SUCCESS)
                return ESPANK_ERROR;
            argv[0] = join;
        }
        return ESPANK_SUCCESS;
    }
    snprintf(value, sizeof value, "%d,%d,%d,%d", given[RECORD], given[OUTER], given[MNT], given[USER]);
    if (spank_setenv(spank, "SHOEBOX_STEP", value, 1) != ESPANK_SUCCESS)
        return wrapped ? ESPANK_ERROR : ESPANK_SUCCESS;
    for (int at = 0; at < GIVEN; at++)
        fcntl(given[at], F_SETFD, 0);
    argv[0] = join; /* of this process only; what stands behind it counts no more */
    return ESPANK_SUCCESS;
}

/* For each task that has ended. With the last, what serves the image leaves, and we wait for that: in the step's control
 * group it would keep Slurm from removing this, unless the tasks have left somebody there anyway. */
int slurm_spank_task_exit(spank_t spank, int ac, char **av)
{
    (void)ac, (void)av;
    uint32_t tasks;
    struct pollfd end = {.fd = server, .events = POLLIN};
    if (given[RECORD] < 0 || spank_get_item(spank, S_JOB_LOCAL_TASK_COUNT, &tasks) != ESPANK_SUCCESS || ++ended < tasks)
        return ESPANK_SUCCESS;
    for (int at = 0; at < GIVEN; at++)
        close(given[at]);
    given[RECORD] = -1;
    if (server >= 0)
        poll(&end, 1, LEAVING);
    return ESPANK_SUCCESS;
}

/* As root, before a job's first step on this node, and after its last. Neither ever fails: that would drain the node. */
int slurm_spank_job_prolog(spank_t spank, int ac, char **av)
{
    (void)ac, (void)av;
    uint32_t job;
    if (spank_get_item(spank, S_JOB_ID, &job) == ESPANK_SUCCESS && (mkdir(PINS, 0755) == 0 || errno == EEXIST)) {
        char path[64];
        snprintf(path, sizeof path, PINS "/%u", job);
        mkdir(path, 0755);
    }
    return ESPANK_SUCCESS;
}

int slurm_spank_job_epilog(spank_t spank, int ac, char **av)
{
    (void)ac, (void)av;
    uint32_t job;
    if (spank_get_item(spank, S_JOB_ID, &job) == ESPANK_SUCCESS) {
        char path[64];
        unpin(job);
        snprintf(path, sizeof path, PINS "/%u", job);
        rmdir(path);
    }
    return ESPANK_SUCCESS;
}
