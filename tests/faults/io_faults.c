// Makes calls of the process that loads it fail, for files below one folder; see io_faults.py, which writes the order.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind { OPEN, WRITE, SYNC, TRUNCATE, RENAME, MAKE, REMOVE, READ };
enum way { PASS, FAIL, SHORTEN, TEAR };

// As `_ORDER` in io_faults.py.
struct order {
  uint32_t kinds;   // a bit for each kind of call that is counted
  uint32_t way;     // what happens to those that are struck
  int64_t error;    // what `errno` becomes
  int64_t after;    // so many calls pass first
  int64_t times;    // so many are struck then
  int64_t struck;   // so many were
  char folder[PATH_MAX];
};

static struct order *order;
static pid_t owner;

__attribute__((constructor)) static void load(void) {
  const char *path = getenv("NBR_TEST_IO_FAULTS");
  int file = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
  if (file < 0) return;
  void *mapped = mmap(NULL, sizeof *order, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  owner = getpid();
  // What this process starts is not to have it.
  unsetenv("LD_PRELOAD");
  if (mapped != MAP_FAILED) order = mapped;
}

static bool is_below(int folder, const char *path) {
  char found[PATH_MAX];
  size_t length = strlen(order->folder);
  if (!path || path[0] != '/') {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
    ssize_t size = folder < 0 ? -1 : readlink(link, found, sizeof found - 1);
    if (size < 0) return false;
    found[size] = 0;
    path = found;
  }
  return !strncmp(path, order->folder, length) && (path[length] == '/' || !path[length]);
}

// What is to happen to a call on this file; `path` is NULL where the descriptor is the file's own.
static enum way struck(enum kind kind, int descriptor, const char *path) {
  if (!order || !(order->kinds >> kind & 1) || getpid() != owner) return PASS;
  int before = errno;
  bool is_struck = is_below(descriptor, path) && __atomic_fetch_sub(&order->after, 1, __ATOMIC_SEQ_CST) <= 0 &&
                   __atomic_fetch_sub(&order->times, 1, __ATOMIC_SEQ_CST) > 0;
  errno = before;
  if (!is_struck) return PASS;
  __atomic_fetch_add(&order->struck, 1, __ATOMIC_SEQ_CST);
  return order->way == PASS ? FAIL : order->way;
}

static int failed(void) {
  errno = order->error;
  return -1;
}

#define REAL(name)                                                                           \
  (*({                                                                                       \
    static __typeof__(&name) real;                                                           \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name);                            \
    real;                                                                                    \
  }))

// A call that changes or reads nothing in part.
#define WHOLE(kind, name, descriptor, path, parameters, arguments)                           \
  int name parameters {                                                                      \
    return struck(kind, descriptor, path) ? failed() : REAL(name) arguments;                 \
  }

WHOLE(SYNC, fsync, file, NULL, (int file), (file))
WHOLE(SYNC, fdatasync, file, NULL, (int file), (file))
WHOLE(TRUNCATE, ftruncate, file, NULL, (int file, off_t size), (file, size))
WHOLE(TRUNCATE, ftruncate64, file, NULL, (int file, off64_t size), (file, size))
WHOLE(RENAME, rename, -1, from, (const char *from, const char *to), (from, to))
WHOLE(RENAME, renameat, in, from, (int in, const char *from, int into, const char *to), (in, from, into, to))
WHOLE(MAKE, mkdir, -1, path, (const char *path, mode_t mode), (path, mode))
WHOLE(MAKE, mkdirat, in, path, (int in, const char *path, mode_t mode), (in, path, mode))
WHOLE(REMOVE, unlink, -1, path, (const char *path), (path))
WHOLE(REMOVE, unlinkat, in, path, (int in, const char *path, int flags), (in, path, flags))
WHOLE(REMOVE, rmdir, -1, path, (const char *path), (path))

int posix_fallocate(int file, off_t start, off_t size) {
  return struck(WRITE, file, NULL) ? (int)order->error : REAL(posix_fallocate)(file, start, size);
}

int posix_fallocate64(int file, off64_t start, off64_t size) {
  return struck(WRITE, file, NULL) ? (int)order->error : REAL(posix_fallocate64)(file, start, size);
}

// A call that may write less than it was asked for; `half` does that.
#define WRITES(name, parameters, arguments, size, half)                                      \
  ssize_t name parameters {                                                                  \
    enum way way = struck(WRITE, file, NULL);                                                \
    if (way == FAIL || (way == TEAR && (size) < 2)) return failed();                         \
    if (way == PASS || (size) < 2) return REAL(name) arguments;                              \
    ssize_t done = REAL(name) half;                                                          \
    return way == TEAR ? failed() : done;                                                    \
  }

WRITES(write, (int file, const void *data, size_t size), (file, data, size), size, (file, data, size / 2))
WRITES(pwrite, (int file, const void *data, size_t size, off_t start), (file, data, size, start), size,
       (file, data, size / 2, start))
WRITES(pwrite64, (int file, const void *data, size_t size, off64_t start), (file, data, size, start), size,
       (file, data, size / 2, start))
WRITES(writev, (int file, const struct iovec *parts, int count), (file, parts, count), count, (file, parts, count / 2))
WRITES(sendfile, (int file, int from, off_t *start, size_t size), (file, from, start, size), size,
       (file, from, start, size / 2))
WRITES(sendfile64, (int file, int from, off64_t *start, size_t size), (file, from, start, size), size,
       (file, from, start, size / 2))

#define READS(name, parameters, arguments)                                                   \
  ssize_t name parameters {                                                                  \
    return struck(READ, file, NULL) ? failed() : REAL(name) arguments;                       \
  }

READS(read, (int file, void *data, size_t size), (file, data, size))
READS(pread, (int file, void *data, size_t size, off_t start), (file, data, size, start))
READS(pread64, (int file, void *data, size_t size, off64_t start), (file, data, size, start))

static enum kind opening(int flags) {
  return flags & (O_WRONLY | O_RDWR | O_CREAT) ? OPEN : READ;
}

#define OPENS(name, in, before, ...)                                                         \
  int name(before const char *path, int flags, ...) {                                        \
    va_list more;                                                                            \
    va_start(more, flags);                                                                   \
    mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(more, mode_t) : 0;                \
    va_end(more);                                                                            \
    return struck(opening(flags), in, path) ? failed() : REAL(name)(__VA_ARGS__ path, flags, mode); \
  }
#define COMMA ,

OPENS(open, -1, )
OPENS(open64, -1, )
OPENS(openat, folder, int folder COMMA, folder COMMA)
OPENS(openat64, folder, int folder COMMA, folder COMMA)
