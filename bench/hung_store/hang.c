/* A file system that hangs: while the file $HANG_FLAG exists, every call that names a path below $HANG_BELOW waits.

   Loaded into the control plane with LD_PRELOAD, since no hung NFS server is at hand. Files that are open already are read and
   written on; every task and call of the bench opens or looks for one. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static void wait_while_hung(const char *path) {
    const char *below = getenv("HANG_BELOW"), *flag = getenv("HANG_FLAG");
    struct timespec moment = {0, 20000000};
    if (!path || !below || !flag || strncmp(path, below, strlen(below)) != 0) return;
    while (access(flag, F_OK) == 0) nanosleep(&moment, NULL);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define OPEN(name)                                            \
    int name(const char *path, int flags, ...) {              \
        va_list rest;                                         \
        va_start(rest, flags);                                \
        mode_t mode = va_arg(rest, mode_t);                   \
        va_end(rest);                                         \
        wait_while_hung(path);                                \
        return REAL(name)(path, flags, mode);                 \
    }
OPEN(open)
OPEN(open64)

int stat(const char *path, struct stat *found) { wait_while_hung(path); return REAL(stat)(path, found); }
int lstat(const char *path, struct stat *found) { wait_while_hung(path); return REAL(lstat)(path, found); }
int stat64(const char *path, struct stat64 *found) { wait_while_hung(path); return REAL(stat64)(path, found); }
int lstat64(const char *path, struct stat64 *found) { wait_while_hung(path); return REAL(lstat64)(path, found); }
int unlink(const char *path) { wait_while_hung(path); return REAL(unlink)(path); }
int rmdir(const char *path) { wait_while_hung(path); return REAL(rmdir)(path); }
int mkdir(const char *path, mode_t mode) { wait_while_hung(path); return REAL(mkdir)(path, mode); }
int rename(const char *from, const char *to) { wait_while_hung(from); return REAL(rename)(from, to); }
DIR *opendir(const char *path) { wait_while_hung(path); return REAL(opendir)(path); }
