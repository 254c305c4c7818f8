/*
 * sh-mount: mount an image that the site trusts, as root, for a user, and then be that user for good. See sh-mount(8).
 *
 *     sh-mount kernel IMAGE [FS SIZE DIRECTORY]...   for sh-run to join: prints where image and caches are mounted, ends
 *                                                    at the end of stdin
 *     sh-mount setuid PLAN IMAGE                     becomes the command of the plan, which is in descriptor PLAN
 *
 * Installed set-user-ID root. Everything is read, opened and judged with the caller's ids; root's are taken back only
 * between as_root() and as_caller() or drop(), and each step there says why it is safe. Whatever fails, stop() ends the
 * process, and with it all it made: the mounts are in a mount namespace of its own, a loop device goes with its mount.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/keyctl.h>
#include <linux/loop.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <syslog.h>
#include <unistd.h>

#ifndef MOUNT_CONF
#define MOUNT_CONF "/etc/shoebox/mount.conf"
#endif
#ifndef MOUNT_POINT
#define MOUNT_POINT "/usr/libexec/shoebox/mnt" /* an empty directory of root's */
#endif
#ifndef MKFS
#define MKFS "/sbin/mkfs." /* and the name of a file system: root's programs */
#endif

enum { NOT_RUN = 125, NOT_EXECUTABLE = 126, NOT_FOUND = 127 }; /* exit statuses, sh-run's own */
enum { MANY = 64, CONF_MAX = 1 << 16, PLAN_MAX = 1 << 23, TRIES = 1000, SUPERBLOCK = 96, CACHES = 8, CHUNK = 1 << 16 };
enum { BLOCK = 4096 }; /* bytes, of caches: what every file system below can write directly, Lustre too */
static const uint64_t SIZE_LIMIT = UINT64_C(1) << 60; /* of caches, in bytes */
enum { SIF_HEADER = 128, SIF_DESCRIPTOR = 585, SIF_PARTITION = 0x4004, SIF_PRIMARY = 2 };
enum { SLAVE = 1 << 19, DETACH = 2 }; /* MS_SLAVE, MNT_DETACH: <sys/mount.h> and <linux/mount.h> exclude each other */

enum { SOURCES, TARGETS, DIRECTORIES, WORDS, FD, VARIABLES, KINDS }; /* the strings of a plan, */
static const char KEYS[] = "mtcade";                                 /* which begin with these letters */

/* The file systems: the name; mount options, each with its value; mkfs's words, with BLOCK. */
struct format {
    const char *name, *options[5], *words[5];
};
static const struct format SQUASHFS = {.name = "squashfs", .options = {"ro"}};
static const struct format FORMATS[] = {
    /* No journal, and no copies of what a repair needs: nobody will repair it. mkfs's blocks side by side: few writes. */
    {.name = "ext4",
     .options = {"noinit_itable", NULL, "errors", "remount-ro"},
     .words = {"-qFm0", "-b4096", "-O^has_journal,^resize_inode,sparse_super2",
               "-Elazy_itable_init=1,nodiscard,num_backup_sb=0,packed_meta_blocks=1"}},
    /* The smallest log that there is: mkfs writes all of it. */
    {.name = "xfs", .words = {"-qfK", "-ssize=4096", "-lsize=64m"}},
};
enum { NFORMATS = sizeof FORMATS / sizeof *FORMATS };

struct policy { /* what mount.conf says */
    const char *stores[MANY], *trees[MANY], *caches[MANY], *context;
    uid_t owners[MANY], accounts[MANY]; /* whose images are trusted; whose the directories of caches are */
    unsigned nstores, ntrees, nowners, ncaches, formats;
    int64_t least, most; /* sizes of a cache, in bytes */
    bool setuid;
};

struct cache {
    const struct format *format;
    int64_t size; /* in bytes */
    int directory, file;
    struct stat st; /* of the directory: whose it is, and so the file is */
};

struct image {
    int fd;
    struct stat st;
    char path[PATH_MAX];   /* of the descriptor */
    uint64_t offset, size; /* of the squashfs in the file, in bytes */
};

struct plan {
    char **list[KINDS];
    size_t count[KINDS];
    struct sock_filter *filter;
    unsigned short blocks;
};

/* Make a text fit for a line in a log or on a terminal: ASCII, as bytes beyond may steer a terminal too. */
static char *clean(char *text)
{
    for (char *at = text; *at; at++)
        *at = isprint((unsigned char)*at) ? *at : '?';
    return text;
}

/*
 * Say why, and end. First the caller's ids, for good: what he left open as our stderr is never written to as root. And
 * before that, nothing may be open any more that root opened: a process that is the caller's and that ends has no memory
 * for a moment, and then many kernels forget that it began set-user-ID, and hand its descriptors out (pidfd_getfd).
 */
static _Noreturn void stop(int status, const char *what, const char *name, const char *why)
{
    char line[PATH_MAX + 512];
    if (syscall(SYS_close_range, 3U, ~0U, 0) || setresgid(getgid(), getgid(), getgid()) ||
        setresuid(getuid(), getuid(), getuid()))
        _exit(NOT_RUN);
    snprintf(line, sizeof line, name ? "sh-mount: cannot %s '%s': %s" : "sh-mount: cannot %s%s: %s", what,
             name ? name : "", why);
    dprintf(STDERR_FILENO, "%s\n", clean(line));
    _exit(status);
}

/* Every system call that matters passes here. */
static int must(long result, const char *what)
{
    if (result < 0)
        stop(NOT_RUN, what, NULL, strerror(errno));
    return (int)result;
}

/* Return memory full of zeros. */
static void *room(size_t count, size_t size)
{
    void *const found = calloc(count, size);
    must(found ? 0 : -1, "get memory");
    return found;
}

static void as_root(void)
{
    must(seteuid(0), "be root");
}

/* An effective uid that leaves 0 takes the effective capabilities along, and the file system uid follows it. */
static void as_caller(void)
{
    must(seteuid(getuid()), "be the caller");
}

static int open_by(unsigned rules, int at, const char *path, int flags)
{
    const struct open_how how = {.flags = (unsigned)flags | O_CLOEXEC, .resolve = rules};
    long fd;
    int tries = 0;
    do /* something was renamed or mounted, anywhere, while a ".." was passed */
        fd = syscall(SYS_openat2, at, path, &how, sizeof how);
    while (fd < 0 && errno == EAGAIN && ++tries < TRIES);
    return (int)fd;
}

static int copy_mounts(int fd)
{
    const unsigned flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE | AT_EMPTY_PATH;
    return must(syscall(SYS_open_tree, fd, "", flags), "copy a mount");
}

static int set_mounts(int mount, unsigned flags, struct mount_attr to)
{
    return (int)syscall(SYS_mount_setattr, mount, "", flags | AT_EMPTY_PATH, &to, sizeof to);
}

static void attach(int mount, int on, const char *name)
{
    const unsigned flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH;
    must(syscall(SYS_move_mount, mount, "", on, name, flags), "attach a mount");
}

/* ---- What is read: mount.conf, plans, images. No effects; test/c/fuzz.c feeds these. ---- */

static uint64_t number(const unsigned char *at, int bytes)
{
    uint64_t value = 0;
    while (bytes--)
        value = value << 8 | at[bytes];
    return value;
}

/* Read a decimal number below a limit, or return -1. It may end in one of the units, each 1,024 times the one before. */
static int64_t decimal(const char *text, uint64_t limit, const char *units)
{
    char *end;
    const unsigned long long value = strtoull(text, &end, 10);
    const char *const unit = *end ? strchr(units, *end) : NULL;
    const int shift = unit ? (int)(unit - units + 1) * 10 : 0;
    const bool whole = isdigit((unsigned char)*text) && !end[unit ? 1 : 0];
    return whole && value < limit >> shift ? (int64_t)(value << shift) : -1;
}

/* Return which of FORMATS has a name, or -1. */
static int format(const char *name)
{
    int i = NFORMATS;
    while (--i >= 0 && strcmp(name, FORMATS[i].name))
        ;
    return i;
}

/* Return a set of formats, a bit each, of their names; 0 if one is unknown. */
static unsigned formats(char *names)
{
    unsigned found = 0;
    for (char *name; (name = strsep(&names, " \t")); found |= 1U << format(name))
        if (format(name) < 0)
            return 0;
    return found;
}

/*
 * Read mount.conf; the policy goes on using its text. Returns 0, or the number of the first line that is wrong: nothing
 * is passed over, such as a "setuid no" that is indented, or a directory that no path would match.
 */
static unsigned parse_policy(char *text, struct policy *policy)
{
    char *line, none[] = "";
    *policy = (struct policy){.formats = 1, .least = INT64_C(1) << 20, .most = INT64_C(1) << 40};
    for (unsigned count = 1; (line = strsep(&text, "\n")); count++) {
        const char *key = strsep(&line, " \t");
        char *value = line ? line + strspn(line, " \t") : none, *first = none;
        if (!strcmp(key, "cache") || !strcmp(key, "cache-size")) {
            first = strsep(&value, " \t");
            value = value ? value + strspn(value, " \t") : none;
        }
        const bool directory = *value == '/' && !strchr("/ \t\r", value[strlen(value) - 1]);
        if (!strcmp(key, "store") && directory && policy->nstores < MANY)
            policy->stores[policy->nstores++] = value;
        else if (!strcmp(key, "directory") && directory && policy->ntrees < MANY)
            policy->trees[policy->ntrees++] = value;
        else if (!strcmp(key, "owner") && decimal(value, UINT32_MAX, "") >= 0 && policy->nowners < MANY)
            policy->owners[policy->nowners++] = (uid_t)decimal(value, UINT32_MAX, "");
        else if (!strcmp(key, "cache") && directory && decimal(first, UINT32_MAX, "") > 0 && policy->ncaches < MANY) {
            policy->accounts[policy->ncaches] = (uid_t)decimal(first, UINT32_MAX, "");
            policy->caches[policy->ncaches++] = value;
        } else if (!strcmp(key, "cache-size") && (policy->least = decimal(first, SIZE_LIMIT, "KMGT")) > 0) {
            if ((policy->most = decimal(value, SIZE_LIMIT, "KMGT")) < policy->least)
                return count;
        } else if (!strcmp(key, "cache-fs") && (policy->formats = formats(value)))
            continue;
        else if (!strcmp(key, "context") && *value)
            policy->context = value;
        else if (!strcmp(key, "setuid") && (!strcmp(value, "yes") || !strcmp(value, "no")))
            policy->setuid = *value == 'y';
        else if (*key != '#' && (*key || *value))
            return count;
    }
    return 0;
}

/* Return the length of the first of these directories that a path is, or lies in, component by component; else 0. */
static size_t lies_in(const char *path, const char *const *directories, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        const size_t length = strlen(directories[i]);
        if (!strncmp(path, directories[i], length) && (path[length] == '/' || !path[length]))
            return length;
    }
    return 0;
}

/* Read a plan: size bytes, and a NUL after them: strings up to an empty one, then a seccomp filter. */
static const char *parse_plan(char *text, size_t size, struct plan *plan)
{
    const char *const end = text + size;
    char *at, *key;
    for (int kind = 0; kind < KINDS; kind++)
        plan->list[kind] = room(size / 2 + 1, sizeof(char *)); /* a string has two bytes or more: the last is NULL */
    for (at = text; at < end && *at && (key = strchr(KEYS, *at)); at += strlen(at) + 1) {
        plan->list[key - KEYS][plan->count[key - KEYS]++] = at + 1;
        if (key == KEYS + SOURCES && !memchr("wruWRU", at[1], 6))
            return "it has a mount of an unknown kind";
    }
    if (at >= end || *at || !plan->count[WORDS] || plan->count[FD] > 1 || plan->count[SOURCES] != plan->count[TARGETS])
        return "it is malformed";
    const size_t rest = (size_t)(end - ++at) / sizeof *plan->filter;
    plan->blocks = rest > BPF_MAXINSNS ? BPF_MAXINSNS : (unsigned short)rest;
    plan->filter = room(plan->blocks + 1U, sizeof *plan->filter);
    memcpy(plan->filter, at, plan->blocks * sizeof *plan->filter);
    return NULL;
}

/*
 * Find the squashfs in a file: at its begin, or the system partition of a SIF file. The caller has no say in where: the
 * data of files in a trusted image are anybody's, and may look like another squashfs, in the middle of it.
 */
static const char *find_squashfs(int fd, uint64_t size, uint64_t *offset, uint64_t *length)
{
    unsigned char head[SIF_HEADER];
    *offset = 0;
    *length = size;
    if (pread(fd, head, sizeof head, 0) == (ssize_t)sizeof head && !memcmp(head + 32, "SIF_MAGIC", 10)) {
        unsigned char part[SIF_DESCRIPTOR];
        uint64_t left = number(head + 88, 8), at = number(head + 96, 8);
        do {
            if (!left-- || left >= MANY || pread(fd, part, sizeof part, (off_t)at) != (ssize_t)sizeof part)
                return "it is a SIF file without a system partition";
            at += sizeof part;
        } while (number(part, 4) != SIF_PARTITION || !part[4] || number(part + 205, 4) != SIF_PRIMARY);
        *offset = number(part + 17, 8);
        *length = number(part + 25, 8);
    }
    if (*offset > size || *length > size - *offset || pread(fd, head, SUPERBLOCK, (off_t)*offset) != SUPERBLOCK)
        return "it is cut off";
    if (memcmp(head, "hsqs", 4) || number(head + 28, 2) != 4 || number(head + 30, 2) != 0)
        return "it is not a squashfs of version 4.0";
    if (number(head + 40, 8) <= SUPERBLOCK || number(head + 40, 8) > *length)
        return "it is cut off, or damaged";
    *length = number(head + 40, 8);
    return NULL;
}

/* ---- Looking and judging, with the caller's ids. ---- */

/*
 * Open a path component by component, or say what is wrong with it. Each has to be root's or a listed owner's, and
 * writable to nobody else: neither by its mode, which no ACL exceeds, nor as the file system answers the caller (NFSv4
 * ACLs). No symbolic link is followed. From byte `store` on, no mount is crossed: a FUSE server may call any file root's.
 * Before it a sticky directory, as /tmp is, will do, for nobody can move there what is not his; what is mounted right in
 * it will not, for there may have been a directory of his below.
 */
static const char *walk(const char *path, size_t store, int flags, const struct policy *policy, int *fd)
{
    *fd = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    for (const char *name = path;;) {
        const bool inside = (size_t)(name - path) >= store;
        const int at = *fd;
        struct stat st;
        if (at < 0 || fstat(at, &st))
            return strerror(errno);
        bool trusted = st.st_uid == 0;
        for (unsigned i = 0; i < policy->nowners; i++)
            trusted = trusted || st.st_uid == policy->owners[i];
        const bool writable = st.st_mode & (S_IWGRP | S_IWOTH) ||
                              !syscall(SYS_faccessat2, at, "", W_OK, AT_EACCESS | AT_EMPTY_PATH) ||
                              (errno != EACCES && errno != EROFS);
        if (st.st_uid == getuid() || !trusted)
            return "it belongs to you, or to nobody whom the site trusts, or a directory above it does";
        if (writable && (inside || !(st.st_mode & S_ISVTX)))
            return "others than its owner can write to it, or to a directory above it";
        if (!*name)
            return NULL;
        char one[NAME_MAX + 1];
        const size_t length = strcspn(++name, "/");
        snprintf(one, sizeof one, "%.*s", (int)length, name);
        name += length;
        const unsigned rules = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | (inside || writable ? RESOLVE_NO_XDEV : 0);
        *fd = open_by(rules, at, one, *name ? O_PATH | O_DIRECTORY : flags);
        close(at);
    }
}

/* Open what must be root's alone. */
static int open_roots(const char *path, int flags)
{
    const struct policy nobody = {0};
    int fd;
    const char *why = walk(path, strlen(path), flags, &nobody, &fd);
    if (why)
        stop(NOT_RUN, "mount anything without", path, why);
    return fd;
}

/* Return all of a file, and a NUL. */
static char *read_all(int fd, size_t most, size_t *size, const char *name)
{
    struct stat st;
    if (fstat(fd, &st) || !S_ISREG(st.st_mode) || (*size = (size_t)st.st_size) > most)
        stop(NOT_RUN, "read", name, "it is no file, or too big");
    char *const text = room(*size + 1, 1);
    must(pread(fd, text, *size, 0) == (ssize_t)*size ? 0 : -1, "read a file");
    return text;
}

static void read_policy(struct policy *policy)
{
    char why[64];
    size_t size;
    char *text = read_all(open_roots(MOUNT_CONF, O_RDONLY | O_NONBLOCK), CONF_MAX, &size, MOUNT_CONF);
    const unsigned line = parse_policy(text, policy);
    snprintf(why, sizeof why, "line %u is wrong: see sh-mount(8)", line);
    if (line)
        stop(NOT_RUN, "use", MOUNT_CONF, why);
}

/* Read the plan; returns the descriptor that it keeps open, or -1. */
static int read_plan(int fd, struct plan *plan)
{
    size_t size;
    char *text = read_all(fd, PLAN_MAX, &size, "the plan");
    const char *why = parse_plan(text, size, plan);
    const int kept = plan->count[FD] && !why ? (int)decimal(plan->list[FD][0], INT_MAX, "") : -1;
    if (!why && plan->count[FD] && (kept <= STDERR_FILENO || fcntl(kept, F_GETFD) < 0))
        why = "its descriptor is not open"; /* so that none of ours can get this number */
    if (why)
        stop(NOT_RUN, "use", "the plan", why);
    return kept;
}

/* Say why an image may not be mounted, or return NULL, with where its squashfs is. */
static const char *judge(struct image *image, bool kernel, const struct policy *policy)
{
    const size_t store = lies_in(image->path, policy->stores, policy->nstores);
    struct stat found;
    int fd;
    if (!kernel && !policy->setuid)
        return MOUNT_CONF " does not allow the setuid way";
    if (S_ISDIR(image->st.st_mode) && !kernel)
        return lies_in(image->path, policy->trees, policy->ntrees) ? NULL : MOUNT_CONF " does not name this directory";
    if (!S_ISREG(image->st.st_mode))
        return "it is not a file";
    if (!store)
        return "it lies in no store that " MOUNT_CONF " names";
    const char *why = walk(image->path, store, O_PATH, policy, &fd);
    if (!why && (fstat(fd, &found) || found.st_dev != image->st.st_dev || found.st_ino != image->st.st_ino))
        why = "it was moved meanwhile";
    return why ? why : find_squashfs(image->fd, (uint64_t)image->st.st_size, &image->offset, &image->size);
}

/* Log a verdict, and return if it is no refusal. What the caller chose comes last in the line. */
static void say(const char *why, char *what, const char *name)
{
    openlog("sh-mount", LOG_PID, LOG_AUTHPRIV); /* else it would log as whatever the caller calls us: argv[0] */
    syslog(why ? LOG_WARNING : LOG_NOTICE, "%s: uid %u, way %s", why ? why : "granted", getuid(), clean(what));
    if (why)
        stop(NOT_RUN, "mount", name, why);
}

/* Open an image as the caller, judge what the descriptor is, and log it. Returns if the policy allows to mount it. */
static void open_image(struct image *image, const char *name, bool kernel, const struct policy *policy)
{
    char link[64], what[PATH_MAX + 128];
    image->fd = open(name, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (image->fd < 0 || fstat(image->fd, &image->st))
        stop(NOT_RUN, "open", name, strerror(errno));
    snprintf(link, sizeof link, "/proc/self/fd/%d", image->fd);
    must(readlink(link, image->path, sizeof image->path - 1), "find the image's path");
    snprintf(what, sizeof what, "%s, device %u:%u, inode %llu, %s", kernel ? "kernel" : "setuid",
             major(image->st.st_dev), minor(image->st.st_dev), (unsigned long long)image->st.st_ino, image->path);
    say(judge(image, kernel, policy), what, name);
}

/*
 * Say why the caller may not have a cache, or return NULL, with its account's directory. That is opened and judged as an
 * image is, with the account as the one trusted owner: nobody but root and the account can have put it there.
 */
static const char *judge_cache(struct cache *cache, char *const words[3], const struct policy *policy)
{
    const int asked = format(words[0]);
    unsigned i = 0;
    while (i < policy->ncaches && strcmp(words[2], policy->caches[i]))
        i++;
    if (i == policy->ncaches)
        return MOUNT_CONF " has no line for caches in this directory";
    if (asked < 0 || !(policy->formats >> asked & 1))
        return MOUNT_CONF " does not allow this file system";
    cache->format = FORMATS + asked;
    cache->size = decimal(words[1], SIZE_LIMIT, "");
    if (cache->size < policy->least || cache->size > policy->most)
        return MOUNT_CONF " does not allow this size";
    const struct policy account = {.owners = {policy->accounts[i]}, .nowners = 1};
    const char *why = walk(words[2], strlen(words[2]), O_PATH | O_DIRECTORY, &account, &cache->directory);
    if (!why && (fstat(cache->directory, &cache->st) || cache->st.st_uid != policy->accounts[i] ||
                 (cache->st.st_mode & ALLPERMS) != S_IRWXU))
        why = "it does not belong to its account, with mode 0700";
    return why || cache->st.st_gid ? why : "its group is root's";
}

static void open_cache(struct cache *cache, char *const words[3], const struct policy *policy)
{
    char what[PATH_MAX + 128];
    snprintf(what, sizeof what, "cache, %s, %s bytes, %s", words[0], words[1], words[2]);
    say(judge_cache(cache, words, policy), what, words[2]);
}

/* ---- What needs root. Descriptors are left open here: drop() closes all there are. ---- */

static void close_all_but(int kept)
{
    if (kept > 3)
        must(syscall(SYS_close_range, 3U, (unsigned)kept - 1, 0), "close descriptors");
    must(syscall(SYS_close_range, kept < 3 ? 3U : (unsigned)kept + 1, ~0U, 0), "close descriptors");
}

/*
 * Return a user namespace of the caller's in which 0 is the caller. It is made by a child, which ends at once, as the
 * caller, so the kernel decides whether the caller may. As root: a process that began set-user-ID has its maps written
 * by root; these are what the caller may write himself. The child's pid stays ours until we wait for it: if the caller
 * had us ignore SIGCHLD, and found another process for that pid, we would write that one's maps. The caller has every
 * power over what is in his namespace: so the child has nothing of root's open that he could take.
 */
static int user_namespace(void)
{
    char path[32];
    signal(SIGCHLD, SIG_DFL);
    const pid_t child = must(syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0), "make a user namespace");
    if (!child)
        _exit(0);
    snprintf(path, sizeof path, "/proc/%d", child);
    as_root();
    const int proc = must(open(path, O_PATH | O_DIRECTORY | O_CLOEXEC), "open /proc");
    /* "deny", else the caller could leave groups, and some files bar just these. */
    must(dprintf(must(openat(proc, "setgroups", O_WRONLY | O_CLOEXEC), "open setgroups"), "deny"), "deny setgroups");
    must(dprintf(must(openat(proc, "uid_map", O_WRONLY | O_CLOEXEC), "open a map"), "0 %u 1", getuid()), "map the uid");
    must(dprintf(must(openat(proc, "gid_map", O_WRONLY | O_CLOEXEC), "open a map"), "0 %u 1", getgid()), "map the gid");
    const int fd = must(openat(proc, "ns/user", O_RDONLY | O_CLOEXEC), "open a user namespace");
    as_caller();
    must(waitpid(child, NULL, 0), "wait for a child");
    return fd;
}

/*
 * Return a mount, attached nowhere, of a file system. As root: only root may. Its options are ours, or the site's; nosuid
 * and nodev are there before anybody can see it.
 */
static int new_mount(const char *fs, const char *const *option, const char *source, const char *context)
{
    const int made = must(syscall(SYS_fsopen, fs, FSOPEN_CLOEXEC), "open a file system");
    must(syscall(SYS_fsconfig, made, FSCONFIG_SET_STRING, "source", source, 0), "name the loop device");
    for (; *option; option += 2) {
        const unsigned kind = option[1] ? FSCONFIG_SET_STRING : FSCONFIG_SET_FLAG;
        must(syscall(SYS_fsconfig, made, kind, option[0], option[1], 0), "set a mount option");
    }
    if (context)
        must(syscall(SYS_fsconfig, made, FSCONFIG_SET_STRING, "context", context, 0), "set the SELinux context");
    must(syscall(SYS_fsconfig, made, FSCONFIG_CMD_CREATE, NULL, NULL, 0), "make the kernel read a file system");
    return must(syscall(SYS_fsmount, made, FSMOUNT_CLOEXEC, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV), "mount");
}

/*
 * Return a mount, attached nowhere, of what is in a file. As root: loop devices are root's. The device gets a descriptor,
 * not a name, of what the policy found good, or we made; an image read-only. The kernel frees it when its last user ends,
 * be that the mount or, should we be killed, our descriptor. A cache is written past the page cache of the file system
 * below: what that has accepted may fail later, and then the kernel's ext4 would read in its place what was there before:
 * bytes of the caller's.
 */
static int mount_loop(int file, uint64_t offset, uint64_t size, const struct format *fs, const char *context)
{
    const bool readonly = fs == &SQUASHFS;
    struct loop_config config = {.fd = (unsigned)file, .block_size = readonly ? 0 : BLOCK, .info.lo_offset = offset};
    struct loop_info64 now;
    char name[32];
    int loop, tries = 0;
    config.info.lo_sizelimit = (size + BLOCK - 1) / BLOCK * BLOCK; /* whole blocks are read */
    config.info.lo_flags = LO_FLAGS_AUTOCLEAR | (readonly ? LO_FLAGS_READ_ONLY : LO_FLAGS_DIRECT_IO);
    const int control = must(open("/dev/loop-control", O_RDWR | O_CLOEXEC), "open /dev/loop-control");
    for (;;) {
        snprintf(name, sizeof name, "/dev/loop%d", must(ioctl(control, LOOP_CTL_GET_FREE), "find a loop device"));
        loop = must(open(name, (readonly ? O_RDONLY : O_RDWR) | O_CLOEXEC), "open a loop device");
        if (!ioctl(loop, LOOP_CONFIGURE, &config))
            break;
        must(errno == EBUSY && ++tries < TRIES ? close(loop) : -1, "set up a loop device"); /* others were faster */
    }
    if (!readonly && (ioctl(loop, LOOP_GET_STATUS64, &now) || !(now.lo_flags & LO_FLAGS_DIRECT_IO)))
        stop(NOT_RUN, "make a cache with", fs->name, "the file system below cannot write directly");
    return new_mount(fs->name, fs->options, name, context);
}

/*
 * Become the caller, or a cache's account, for good, and see that it is so. Descriptors come first: a process that may be
 * traced, as join() lets us be, gives away what it has open (pidfd_getfd), and a loop device or a mount, opened as root, is
 * root's power.
 */
static void drop(int kept, uid_t uid, gid_t gid)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct none[2] = {{0}}, now[2];
    const uid_t wanted[6] = {uid, uid, uid, gid, gid, gid};
    uid_t is[6];
    close_all_but(kept);
    must(setresgid(gid, gid, gid), "drop the group");
    must(setresuid(uid, uid, uid), "drop the user");
    must(syscall(SYS_capset, &header, none), "drop capabilities"); /* inheritable ones are left by now */
    must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "rule out new privileges");
    must(getresuid(&is[0], &is[1], &is[2]) | getresgid(&is[3], &is[4], &is[5]), "read ids");
    must(syscall(SYS_capget, &header, now), "read capabilities");
    if (memcmp(is, wanted, sizeof is) || !uid || !seteuid(0) || (uid_t)setfsuid((uid_t)-1) != uid ||
        memcmp(now, none, sizeof none) || prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) != 1)
        stop(NOT_RUN, "go on", NULL, "privileges did not go away");
}

/* Become mkfs. Without options of the caller's, environment or terminal; /dev/null stands for what he left open. */
static _Noreturn void run_mkfs(int file, const struct format *fs)
{
    char program[64], path[64];
    const int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
        if (dup2(null, fd) < 0)
            _exit(NOT_RUN);
    snprintf(program, sizeof program, "%s%s", MKFS, fs->name);
    snprintf(path, sizeof path, "/proc/self/fd/%d", file);
    execl(program, program, path, fs->words[0], fs->words[1], fs->words[2], fs->words[3], (char *)NULL);
    _exit(NOT_FOUND);
}

/*
 * Fill a cache's file, as its account, for good: the caller cannot trace or signal that. Limits that he had
 * set low, or a control group of his, may end it: then there is no cache. mkfs has memory to work in, not the file: some
 * file systems (GlusterFS) cannot open anew what has no name, and what has one could be left behind. What mkfs wrote whole,
 * and nothing else, is copied; the file's holes are zeros, as the memory's. Ends with an errno, NOT_RUN if mkfs failed, or
 * NOT_FOUND if there is none.
 */
static _Noreturn void fill(const struct cache *cache)
{
    static char chunk[CHUNK];
    sigset_t none;
    ssize_t size;
    int status = 0;
    for (int one = 1; one < NSIG; one++)
        signal(one, SIG_DFL);
    sigemptyset(&none);
    const int memory = memfd_create("mkfs", 0);
    if (memory < 0 || ftruncate(memory, cache->size) || sigprocmask(SIG_SETMASK, &none, NULL) || setsid() < 0 ||
        chdir("/"))
        _exit(errno);
    const pid_t child = fork();
    if (!child)
        run_mkfs(memory, cache->format);
    if (child < 0 || waitpid(child, &status, 0) != child || status)
        _exit(WEXITSTATUS(status) == NOT_FOUND ? NOT_FOUND : NOT_RUN);
    for (off_t at = 0; (at = lseek(memory, at, SEEK_DATA)) >= 0; at += size) {
        errno = EIO; /* if there is less than there was, or it takes less */
        size = pread(memory, chunk, sizeof chunk, at);
        if (size <= 0 || ((chunk[0] || memcmp(chunk, chunk + 1, (size_t)size - 1)) &&
                          pwrite(cache->file, chunk, (size_t)size, at) != size))
            _exit(errno);
    }
    _exit(errno == ENXIO && !fdatasync(cache->file) ? 0 : errno); /* what was accepted may fail then */
}

/*
 * Make a cache's file, as its account, since root is squashed where files are the cluster's, with none of the caller's keys
 * (AFS, cifs). It has no name; or, where a file system cannot do that, a new one that nobody can know, and that goes before
 * the file has its size, so its space returns whatever ends us; a kill leaves an empty file. What a file system keeps for
 * it (.nfs*) is private to the account. As root: becoming the account, once to return, and once, in a child that closes all
 * but the file, for good.
 */
static void make_cache(struct cache *cache)
{
    const int flags = O_RDWR | O_EXCL | O_DSYNC | O_CLOEXEC; /* O_DSYNC: else some clients (GlusterFS) fail late, too */
    uint64_t random;
    char name[32];
    int status;
    must(syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, NULL) < 0 && errno != ENOSYS ? -1 : 0,
         "leave the caller's keys");
    must(getrandom(&random, sizeof random, 0) == sizeof random ? 0 : -1, "get a random number");
    snprintf(name, sizeof name, ".cache-%016llx", (unsigned long long)random);
    as_root();
    must(setegid(cache->st.st_gid), "be in the account's group");
    must(seteuid(cache->st.st_uid), "be the account");
    cache->file = openat(cache->directory, ".", flags | O_TMPFILE, S_IRUSR | S_IWUSR);
    if (cache->file < 0) {
        cache->file = openat(cache->directory, name, flags | O_CREAT | O_NOFOLLOW, S_IRUSR | S_IWUSR);
        must(cache->file, "make a cache's file");
        must(unlinkat(cache->directory, name, 0), "remove the name of a cache's file");
    }
    must(ftruncate(cache->file, cache->size), "give a cache's file its size");
    as_root();
    must(setegid(getgid()), "be in the caller's group");
    const pid_t child = must(fork(), "make a process");
    if (!child) {
        must(setgroups(0, NULL), "leave the caller's groups");
        drop(cache->file, cache->st.st_uid, cache->st.st_gid);
        fill(cache);
    }
    as_caller();
    must(waitpid(child, &status, 0), "wait for a child");
    errno = WEXITSTATUS(status);
    if (status)
        stop(NOT_RUN, "make a cache with", cache->format->name,
             errno == NOT_FOUND          ? "its mkfs is not installed"
             : errno && errno != NOT_RUN ? strerror(errno)
                                         : "mkfs failed");
}

/*
 * Attach the image, if there is one, at 0, and the caches at 1, 2, ... of a tmpfs in which nobody but root can write. As
 * root: mounting, in this mount namespace, which nobody can enter; and a cache, still mkfs's, becomes empty and the caller's.
 */
static void attach_all(int point, int image, const struct cache *caches, int count, const char *context)
{
    static const char *const options[] = {"mode", "755", "size", "4k", NULL};
    const int folder = new_mount("tmpfs", options, "none", context);
    char name[] = "0";
    attach(folder, point, "");
    must(mkdirat(folder, name, S_IRWXU), "make a directory to mount on");
    if (image >= 0)
        attach(image, folder, name);
    for (int i = 0; i < count; i++) {
        const int mount = mount_loop(caches[i].file, 0, (uint64_t)caches[i].size, caches[i].format, context);
        must(unlinkat(mount, "lost+found", AT_REMOVEDIR) && errno != ENOENT ? -1 : 0, "empty a cache");
        must(fchmodat(mount, ".", S_IRWXU, 0), "make a cache private");
        must(fchownat(mount, ".", getuid(), getgid(), 0), "give a cache to the caller");
        ++*name;
        must(mkdirat(folder, name, S_IRWXU), "make a directory to mount on");
        attach(mount, folder, name);
    }
}

/*
 * Return the judged image's mount, attached nowhere, ro,nosuid,nodev. As root. What is root's in the image shows as the
 * caller's if there is a user namespace for it, as by FUSE. He may read the whole image, so gains nothing.
 */
static int mount_image(const struct image *image, int ns, const char *context)
{
    const struct mount_attr locked = {.attr_set = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV};
    const struct mount_attr owners = {.attr_set = MOUNT_ATTR_IDMAP, .userns_fd = (unsigned)ns};
    const int root = S_ISDIR(image->st.st_mode) ? copy_mounts(image->fd)
                                                : mount_loop(image->fd, image->offset, image->size, &SQUASHFS, context);
    must(set_mounts(root, AT_RECURSIVE, locked), "lock the image");
    if (ns >= 0 && set_mounts(root, 0, owners) && errno != EINVAL) /* before Linux 6.2, it stays root's */
        must(-1, "map the image's owners");
    return root;
}

/*
 * Make a plan's mounts in the image. Sources and targets are opened as the caller, so nothing shows that he could not
 * reach; sources not by magic links, which would name our descriptors; targets as if the image were the root. As root:
 * copying the mount that the one descriptor is open on, and attaching it on the other. The copy keeps the flags of the
 * original. nosuid is added, and nodev, except for what lies on /dev's file system: it is the same outside.
 */
static void make_mounts(const struct plan *plan, int root)
{
    struct stat dev, source, target;
    must(stat("/dev", &dev), "look at /dev");
    for (size_t i = 0; i < plan->count[SOURCES]; i++) {
        const char kind = plan->list[SOURCES][i][0], *from = plan->list[SOURCES][i] + 1, *to = plan->list[TARGETS][i];
        const int fd = open_by(RESOLVE_NO_MAGICLINKS, AT_FDCWD, from, O_PATH);
        const int on = fd < 0 ? -1 : open_by(RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS, root, to, O_PATH);
        const bool there = on >= 0 && !fstat(fd, &source) && !fstat(on, &target);
        const bool fits = there && S_ISDIR(source.st_mode) == S_ISDIR(target.st_mode);
        if (!fits && islower((unsigned char)kind))
            stop(NOT_RUN, "mount something at", to, there ? "one is a directory, the other is not" : strerror(errno));
        if (fits) {
            struct mount_attr flags = {.attr_set = MOUNT_ATTR_NOSUID};
            flags.attr_set |= source.st_dev == dev.st_dev ? 0 : MOUNT_ATTR_NODEV;
            flags.attr_set |= toupper((unsigned char)kind) == 'W' ? 0 : MOUNT_ATTR_RDONLY;
            as_root();
            const int copy = copy_mounts(fd);
            must(set_mounts(copy, AT_RECURSIVE, flags), "set the flags of a mount");
            attach(copy, on, "");
            as_caller();
        }
        if (toupper((unsigned char)kind) == 'U') /* a file made for this; as the caller: one that he may remove */
            must(unlink(from), "remove a file made for the container");
    }
}

/* ---- The end of each way, after drop(): as the caller, for good. ---- */

/*
 * Take the mounts into the caller's user namespace. As they come from one of more privilege, their flags are locked
 * (mount_namespaces(7)): the image stays ro,nosuid,nodev whatever is tried there. Then let processes of the caller's
 * look into this one, to join: it has nothing that they have not. It stays until they have, since a namespace needs
 * somebody inside; the end of stdin says that they have, or are gone.
 */
static _Noreturn void join(int ns)
{
    char c;
    must(setns(ns, CLONE_NEWUSER), "enter the user namespace");
    must(unshare(CLONE_NEWNS), "make the container's mount namespace");
    must(close(ns), "close the user namespace");
    must(prctl(PR_SET_DUMPABLE, 1, 0, 0, 0), "let others join");
    must(dprintf(STDOUT_FILENO, "%s\n", MOUNT_POINT), "write to stdout");
    while (read(STDIN_FILENO, &c, 1) > 0)
        ;
    _exit(0);
}

/* Become the plan's command. What the plan says here can do no more than the caller could. */
static _Noreturn void execute(struct plan *plan)
{
    const struct sock_fprog filter = {.len = plan->blocks, .filter = plan->filter};
    char **env = plan->list[VARIABLES], **words = plan->list[WORDS], **cwd = plan->list[DIRECTORIES], path[PATH_MAX];
    const char *search = "";
    int fd = -1, error = ENOENT;
    for (; *cwd && fd < 0; cwd++)
        fd = open_by(RESOLVE_NO_MAGICLINKS, AT_FDCWD, *cwd, O_PATH | O_DIRECTORY);
    must(fd < 0 ? -1 : fchdir(fd), "enter the working directory");
    if (plan->blocks)
        must(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter, 0, 0), "install the seccomp filter");
    for (; *env; env++)
        search = !strncmp(*env, "PATH=", 5) && !strchr(words[0], '/') ? *env + 5 : search;
    for (bool more = true; more; search++) {
        const size_t length = strcspn(search, ":");
        snprintf(path, sizeof path, "%.*s%s%s", (int)length, search, length ? "/" : "", words[0]);
        execve(path, words, plan->list[VARIABLES]);
        error = errno == ENOENT || errno == ENOTDIR ? error : errno;
        more = *(search += length) == ':';
    }
    stop(error == ENOENT ? NOT_FOUND : NOT_EXECUTABLE, "run", words[0], strerror(error));
}

/* Mount image and caches for sh-run to join. words: three for each cache. */
static _Noreturn void kernel_way(const char *name, char *const *words, int count, const struct policy *policy)
{
    struct image image = {.fd = -1};
    struct cache caches[CACHES] = {0};
    int root = -1;
    if (!count || *name)
        open_image(&image, name, true, policy);
    for (int i = 0; i < count; i++)
        open_cache(&caches[i], words + 3 * i, policy);
    const int ns = user_namespace();
    const int point = open_roots(MOUNT_POINT, O_PATH | O_DIRECTORY);
    for (int i = 0; i < count; i++)
        make_cache(&caches[i]);
    as_root(); /* what was judged, and what was made, on a directory of root's */
    if (image.fd >= 0)
        root = mount_image(&image, ns, policy->context);
    if (count)
        attach_all(point, root, caches, count, policy->context);
    else
        attach(root, point, "");
    drop(ns, getuid(), getgid());
    join(ns);
}

/* Make the image the root, with the plan's mounts in it, and become its command. */
static _Noreturn void setuid_way(const char *name, struct plan *plan, int kept, const struct policy *policy)
{
    struct image image = {.fd = -1};
    open_image(&image, name, false, policy);
    const int point = open_roots(MOUNT_POINT, O_PATH | O_DIRECTORY);
    as_root(); /* what was judged, on a directory of root's */
    const int root = mount_image(&image, -1, policy->context);
    attach(root, point, "");
    as_caller();
    make_mounts(plan, root);

    /*
     * As root: the image becomes the root; what was there goes out of sight. Where that is a rootfs, as on nodes that stay
     * in their initramfs, it cannot go, and the image is made the root of this process and its children alone.
     */
    as_root();
    must(fchdir(root), "enter the image");
    if (!syscall(SYS_pivot_root, ".", "."))
        must(syscall(SYS_umount2, ".", DETACH), "leave the old root");
    else
        must(errno == EINVAL ? chroot(".") : -1, "change the root");
    must(chdir("/"), "enter the image");
    drop(kept, getuid(), getgid());
    execute(plan);
}

int main(int argc, char **argv)
{
    const int ncaches = argc / 3 - 1; /* three words each */
    const bool kernel = argc >= 3 && argc % 3 == 0 && ncaches <= CACHES && !strcmp(argv[1], "kernel");
    const struct itimerval never = {0};
    struct policy policy = {0};
    struct plan plan = {0};
    uid_t real, effective, saved;

    /* Until we know what is wanted, and that it is allowed, be no more than the caller. His environment stays his, as his timer. */
    clearenv();
    must(setitimer(ITIMER_REAL, &never, NULL), "stop the caller's timer");
    must(getresuid(&real, &effective, &saved), "read ids");
    as_caller();
    must(setresgid(getgid(), getgid(), getgid()), "be in the caller's group");
    if (!kernel && (argc != 4 || strcmp(argv[1], "setuid")))
        stop(NOT_RUN, "go on", NULL,
             "usage: sh-mount kernel IMAGE [FS SIZE DIRECTORY]... | sh-mount setuid PLAN IMAGE");
    const char *const name = argv[kernel ? 2 : 3];
    if (saved != 0)
        stop(NOT_RUN, "mount", name, "sh-mount is not installed set-user-ID root, or this is a container");
    /* Root needs no helper, and could not drop; with securebits, changes of ids would leave capabilities as they are. */
    if (real == 0 || prctl(PR_GET_SECUREBITS, 0, 0, 0, 0) != 0)
        stop(NOT_RUN, "mount", name, "you are root, or have securebits");
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++) /* else something of ours could get such a number */
        must(fcntl(fd, F_GETFD), "go on without stdin, stdout and stderr");
    const int kept = kernel ? -1 : read_plan((int)decimal(argv[2], INT_MAX, ""), &plan);
    close_all_but(kept);

    /*
     * As root: a mount namespace of our own, so that nothing we mount is seen outside. Slave, not private: homes that the
     * host mounts and unmounts later come and go here too. Nothing goes from here to the host.
     */
    as_root();
    must(unshare(CLONE_NEWNS), "make a mount namespace");
    const int host = must(open("/", O_PATH | O_DIRECTORY | O_CLOEXEC), "open the root");
    must(set_mounts(host, AT_RECURSIVE, (struct mount_attr){.propagation = SLAVE}), "leave the host's mounts alone");
    as_caller();

    read_policy(&policy);
    if (kernel)
        kernel_way(name, argv + 3, ncaches, &policy);
    setuid_way(name, &plan, kept, &policy);
}
