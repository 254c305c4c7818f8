/*
 * Feeds sh-mount's parsers with damaged input: mount.conf, plans, squashfs and SIF files.
 *
 *     clang -g -fsanitize=fuzzer,address,undefined -o fuzz test/c/fuzz.c && ./fuzz SEEDS
 *
 * An input's first byte chooses the parser: c, p, or i. What a parser accepts is checked to be as sh-mount relies on it.
 */
#define main sh_mount_main
#include "../../lib/c/sh-mount.c"
#undef main
#include <assert.h>
#include <sys/mman.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void try_policy(char *text, size_t size)
{
    static const char *const paths[] = {"/", "/store", "/store/a", "/store-evil/a", ""};
    struct policy policy = {0};
    if (parse_policy(text, &policy))
        return;
    assert(policy.nstores <= MANY && policy.ntrees <= MANY && policy.nowners <= MANY && policy.ncaches <= MANY);
    assert(0 < policy.least && policy.least <= policy.most && (uint64_t)policy.most < SIZE_LIMIT);
    assert(policy.formats && policy.formats < 1U << NFORMATS);
    for (unsigned i = 0; i < policy.ncaches; i++)
        assert(policy.accounts[i] && policy.caches[i][0] == '/' &&
               policy.caches[i] + strlen(policy.caches[i]) <= text + size);
    for (unsigned i = 0; i < policy.nstores; i++)
        assert(policy.stores[i][0] == '/' && policy.stores[i] + strlen(policy.stores[i]) <= text + size);
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
        const size_t length = lies_in(paths[i], policy.stores, policy.nstores);
        assert(length <= strlen(paths[i]) && (!length || !paths[i][length] || paths[i][length] == '/'));
    }
}

static void try_plan(char *text, size_t size)
{
    struct plan plan = {0};
    const char *why = parse_plan(text, size, &plan);
    for (int kind = 0; kind < KINDS; kind++) {
        size_t count = 0;
        for (; !why && plan.list[kind][count]; count++)
            assert(plan.list[kind][count] + strlen(plan.list[kind][count]) < text + size);
        assert(why || count == plan.count[kind]);
        for (size_t i = 0; !why && kind == SOURCES && i < count; i++)
            assert(plan.list[kind][i][0] && plan.list[kind][i] + 1 + strlen(plan.list[kind][i] + 1) < text + size);
    }
    assert(why || (plan.count[WORDS] && plan.count[FD] <= 1 && plan.blocks * sizeof *plan.filter < size));
    assert(why || plan.count[SOURCES] == plan.count[TARGETS]);
    for (int kind = 0; kind < KINDS; kind++)
        free(plan.list[kind]);
    free(plan.filter);
}

static void try_image(const char *data, size_t size)
{
    uint64_t offset, length;
    const int fd = memfd_create("image", MFD_CLOEXEC);
    assert(fd >= 0 && write(fd, data, size) == (ssize_t)size);
    if (!find_squashfs(fd, size, &offset, &length)) {
        char magic[4];
        assert(length > SUPERBLOCK && offset <= size && length <= size - offset);
        assert(pread(fd, magic, 4, (off_t)offset) == 4 && !memcmp(magic, "hsqs", 4));
    }
    close(fd);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!size--)
        return 0;
    char *text = calloc(size + 1, 1); /* exactly: the sanitizer sees one byte too many */
    assert(text);
    memcpy(text, data + 1, size);
    if (*data == 'c')
        try_policy(text, size);
    else if (*data == 'p')
        try_plan(text, size);
    else
        try_image(text, size);
    free(text);
    return 0;
}
