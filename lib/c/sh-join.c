/*
 * sh-join: enter the container that sh-run made for a step, and execute the command that it decided on. Started by
 * spank_shoebox(8) in place of sh-run, with the user's rights, once for each rank; it decides nothing.
 *
 * SHOEBOX_STEP names four descriptors: a record (see handover.py), and the namespaces to enter in this order.
 * The record: lists, each NUL-terminated strings behind their number: the words; the directory, and the status of a
 * command that cannot be executed; variables to unset, PREFIX* among them; variables to set; warnings. What follows is a
 * seccomp filter, for who has a terminal.
 *
 * SHOEBOX_INSTEAD names sh-run and what it is to run, where the plugin has no container and the task must not be outside.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/filter.h>
#include <linux/openat2.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SH_RUN
#define SH_RUN "/usr/local/bin/sh-run"
#endif

enum { NOT_RUN = 125, NOT_FOUND = 127 }; /* exit statuses, sh-run's own */
enum { WORDS, DIRECTORY, UNSET, SET, WARNINGS, LISTS, GIVEN = 4 };

static _Noreturn void stop(int status, const char *what, const char *name, const char *why)
{
    fprintf(stderr, name ? "sh-run: %s '%s': %s\n" : "sh-run: %s%s: %s\n", what, name ? name : "", why);
    _exit(status);
}

static void must(long result, const char *what)
{
    if (result < 0)
        stop(NOT_RUN, what, NULL, strerror(errno));
}

/* Read the string at *at, which ends before the end. */
static char *string(char **at, const char *end)
{
    char *const begin = *at;
    char *const nul = begin < end ? memchr(begin, 0, (size_t)(end - begin)) : NULL;
    if (nul)
        *at = nul + 1;
    else
        stop(NOT_RUN, "cannot read the step's record", NULL, "it is cut off");
    return begin;
}

/* Read a list: an array that ends in NULL. */
static char **list(char **at, const char *end)
{
    const unsigned long count = strtoul(string(at, end), NULL, 10);
    if (count > (unsigned long)(end - *at))
        stop(NOT_RUN, "cannot read the step's record", NULL, "it is cut off");
    char **const found = calloc(count + 1, sizeof *found);
    must(found ? 0 : -1, "cannot get memory");
    for (unsigned long number = 0; number < count; number++)
        found[number] = string(at, end);
    return found;
}

/* Tell whether a variable `NAME=VALUE` is named, by NAME or by PREFIX*. */
static bool is_named(const char *variable, char **named)
{
    for (; *named; named++) {
        const size_t size = strlen(*named);
        if (size && (*named)[size - 1] == '*' ? strncmp(variable, *named, size - 1) == 0
                                              : strncmp(variable, *named, size) == 0 && variable[size] == '=')
            return true;
    }
    return false;
}

/* Change the environment: away with what is named, then set. */
static void change(char **unset, char **set)
{
    char **kept = environ;
    for (char **at = environ; *at; at++)
        if (!is_named(*at, unset))
            *kept++ = *at;
    *kept = NULL;
    unsetenv("SHOEBOX_STEP");
    for (; *set; set++)
        must(putenv(*set) ? -1 : 0, "cannot set a variable");
}

/* Take a TMPDIR away that is not inside: a task's prolog has set it, after sh-run decided. */
static void check_tmpdir(char **set)
{
    struct stat about;
    const char *const path = getenv("TMPDIR");
    bool ours = false;
    for (; *set; set++)
        ours = ours || strncmp(*set, "TMPDIR=", 7) == 0;
    if (path && !ours && (stat(path, &about) || !S_ISDIR(about.st_mode)))
        unsetenv("TMPDIR");
}

/* Close all that was inherited, but for 0, 1, 2 and what PMI-1 has opened for the command. */
static void tidy(void)
{
    const char *const named = getenv("PMI_FD");
    const long kept = named ? strtol(named, NULL, 10) : -1;
    if (kept > STDERR_FILENO && kept < INT_MAX) {
        if (kept > STDERR_FILENO + 1)
            must(syscall(SYS_close_range, STDERR_FILENO + 1, (unsigned)kept - 1, 0), "cannot close descriptors");
        must(syscall(SYS_close_range, (unsigned)kept + 1, ~0U, 0), "cannot close descriptors");
    } else
        must(syscall(SYS_close_range, STDERR_FILENO + 1, ~0U, 0), "cannot close descriptors");
}

/* Execute, PATH searched as sh-run does. */
static _Noreturn void run(char **words, int not_executable)
{
    int refused = 0;
    const char *const name = words[0];
    const char *at = strchr(name, '/') ? "" : getenv("PATH");
    char path[PATH_MAX];
    for (bool more = at != NULL; more;) {
        const size_t size = strcspn(at, ":");
        const bool plain = strchr(name, '/') != NULL;
        if (snprintf(path, sizeof path, "%.*s%s%s", (int)size, at,
                     plain  ? ""
                     : size ? "/"
                            : "./",
                     name) < (int)sizeof path) {
            execve(path, words, environ);
            if (errno != ENOENT && errno != ENOTDIR)
                refused = errno;
            else if (access(path, F_OK) == 0)
                refused = ENOEXEC; /* there, but not what it begins with */
            if (refused && refused != EACCES)
                break;
        }
        more = at[size] == ':';
        at += size + more;
    }
    if (!refused)
        stop(NOT_FOUND, "cannot run", name, "there is no such command inside");
    stop(not_executable, "cannot run", name, strerror(refused));
}

/* Run sh-run, which says itself what is wrong. */
static _Noreturn void instead(int argc, char **argv, char *command)
{
    static char sh_run[] = SH_RUN, end[] = "--";
    char *const first[] = {sh_run, getenv("SHOEBOX_IMAGE"), end, command};
    char **const words = calloc((size_t)argc + sizeof first / sizeof *first, sizeof *words);
    must(words && first[1] ? 0 : -1, "cannot start sh-run");
    memcpy(words, first, sizeof first);
    memcpy(words + sizeof first / sizeof *first, argv + 1, (size_t)(argc - 1) * sizeof *words);
    unsetenv("SHOEBOX_INSTEAD");
    execv(SH_RUN, words);
    stop(NOT_RUN, "cannot run", SH_RUN, strerror(errno));
}

int main(int argc, char **argv)
{
    static const int kinds[GIVEN] = {0, CLONE_NEWUSER, CLONE_NEWNS, CLONE_NEWUSER};
    int given[GIVEN], cwd;
    struct stat about;
    const char *const named = getenv("SHOEBOX_STEP");
    if (!named && getenv("SHOEBOX_INSTEAD"))
        instead(argc, argv, strdup(getenv("SHOEBOX_INSTEAD")));
    if (!named || sscanf(named, "%d,%d,%d,%d", &given[0], &given[1], &given[2], &given[3]) != GIVEN)
        stop(NOT_RUN, "cannot join a step", NULL, "Slurm's plugin starts sh-join; start sh-run");
    must(fstat(given[0], &about), "cannot read the step's record");
    char *at = mmap(NULL, (size_t)about.st_size + 1, PROT_READ | PROT_WRITE, MAP_PRIVATE, given[0], 0);
    must(at == MAP_FAILED ? -1 : 0, "cannot read the step's record");
    const char *const end = at + about.st_size;
    char **lists[LISTS];
    for (int number = 0; number < LISTS; number++)
        lists[number] = list(&at, end);
    if (!*lists[WORDS] || !**lists[WORDS] || !*lists[DIRECTORY] || !lists[DIRECTORY][1])
        stop(NOT_RUN, "cannot read the step's record", NULL, "something is missing");
    for (int number = 1; number < GIVEN; number++)
        must(setns(given[number], kinds[number]), "cannot enter the step's container");
    const char *const rank = getenv("SLURM_LOCALID");
    for (char **warning = lists[WARNINGS]; *warning && rank && strcmp(rank, "0") == 0; warning++)
        fprintf(stderr, "sh-run: warning: %s\n", *warning);
    change(lists[UNSET], lists[SET]);
    check_tmpdir(lists[SET]);
    tidy();
    struct open_how how = {.flags = O_PATH | O_DIRECTORY | O_CLOEXEC, .resolve = RESOLVE_NO_MAGICLINKS};
    do
        cwd = (int)syscall(SYS_openat2, AT_FDCWD, *lists[DIRECTORY], &how, sizeof how);
    while (cwd < 0 && errno == EAGAIN);
    if (cwd < 0 || fchdir(cwd))
        stop(NOT_RUN, "cannot work in", *lists[DIRECTORY], strerror(errno));
    must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "cannot set no_new_privs");
    struct sock_fprog filter = {(unsigned short)((size_t)(end - at) / sizeof(struct sock_filter)), NULL};
    const int terminal = open("/dev/tty", O_RDONLY | O_NOCTTY | O_CLOEXEC);
    if (filter.len && (terminal >= 0 || isatty(0) || isatty(1) || isatty(2))) {
        filter.filter = calloc(filter.len, sizeof *filter.filter); /* in the record it is not aligned */
        must(filter.filter ? 0 : -1, "cannot get memory");
        memcpy(filter.filter, at, filter.len * sizeof *filter.filter);
        must(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter, 0, 0), "cannot set a seccomp filter");
    }
    run(lists[WORDS], atoi(lists[DIRECTORY][1]));
}
