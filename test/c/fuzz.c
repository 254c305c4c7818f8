/*
 * Feeds sh-mount's parsers with damaged input: mount.conf, plans, squashfs and SIF files.
 *
 *     cc -g -fsanitize=address,undefined -o fuzz test/c/fuzz.c && ./fuzz ROUNDS SEED...   changes the seeds, again and again
 *     clang -g -fsanitize=fuzzer,address,undefined -DLIBFUZZER ...                        or let libFuzzer do it
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
    assert(policy.nstores <= MANY && policy.ntrees <= MANY && policy.nowners <= MANY);
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
    assert(why || (plan.count[WORDS] && plan.count[KEPT] <= 1 && plan.blocks * sizeof *plan.filter < size));
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

#ifndef LIBFUZZER
static uint32_t random_below(uint32_t limit)
{
    static uint32_t state = 2463534242U; /* the same in every run: xorshift32 */
    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    return state % limit;
}

/* Change a few bytes: to a random or a telling value, by one bit, by a copy from elsewhere; and perhaps cut. */
static size_t mutate(uint8_t *data, size_t size)
{
    static const uint8_t telling[] = {0, 1, 0x7f, 0x80, 0xff, '/', '\n', ' ', 'a', 'm', 't', 'w'};
    for (uint32_t left = 1 + random_below(8); left && size > 1; left--) {
        const uint32_t at = 1 + random_below((uint32_t)size - 1), from = 1 + random_below((uint32_t)size - 1);
        const uint32_t most = (uint32_t)size - (at > from ? at : from);
        switch (random_below(5)) {
        case 0: data[at] = (uint8_t)random_below(256); break;
        case 1: data[at] = telling[random_below(sizeof telling)]; break;
        case 2: data[at] ^= (uint8_t)(1U << random_below(8)); break;
        case 3: memmove(data + at, data + from, random_below(most + 1)); break;
        default: size = random_below(4) ? size : at; break;
        }
    }
    return size;
}

int main(int argc, char **argv)
{
    static uint8_t seed[1 << 16], data[sizeof seed];
    const long rounds = argc > 1 ? atol(argv[1]) : 0;
    for (int i = 2; i < argc; i++) {
        const int fd = open(argv[i], O_RDONLY | O_CLOEXEC);
        const ssize_t size = read(fd, seed, sizeof seed);
        assert(size > 0);
        close(fd);
        LLVMFuzzerTestOneInput(seed, (size_t)size);
        for (long round = 0; round < rounds; round++) {
            memcpy(data, seed, (size_t)size);
            LLVMFuzzerTestOneInput(data, mutate(data, (size_t)size));
        }
    }
    printf("%ld inputs\n", rounds * (argc > 2 ? argc - 2 : 0));
    return 0;
}
#endif
