/* A file system in trouble, for every call that names a path below $HANG_BELOW, while the file $HANG_FLAG exists:

   - the file is empty: the call waits until it is gone;
   - it says an errno ("28"): calls that would make or change something fail with it;
   - it says a minus and milliseconds ("-150"): calls take so much longer, and so does each flush of this process, wherever its file is.

   Loaded into the control plane with LD_PRELOAD, since no hung NFS server is at hand. Files that are open already are read and
   written on; every task and call of the bench opens or looks for one. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define NONE 0x7fffffff

/* What the flag says: 0 to wait, an errno, minus milliseconds; NONE when it is not there. */
static int said(void) {
    char text[16] = "";
    const char *flag = getenv("HANG_FLAG");
    int file = flag ? REAL(open)(flag, O_RDONLY) : -1;
    if (file < 0) return NONE;
    if (read(file, text, sizeof text - 1) < 0) text[0] = 0;
    close(file);
    return atoi(text);
}

static void pause_for(int milliseconds) {
    struct timespec time = {milliseconds / 1000, milliseconds % 1000 * 1000000L};
    nanosleep(&time, NULL);
}

/* Whether the call fails now, with errno set. */
static int fails(const char *path, int writes) {
    const char *below = getenv("HANG_BELOW");
    int saved = errno, trouble;
    if (!path || !below || strncmp(path, below, strlen(below)) != 0) return 0;
    while ((trouble = said()) == 0) pause_for(20);
    if (trouble < 0) pause_for(-trouble);
    errno = saved;
    if (trouble <= 0 || trouble == NONE || !writes) return 0;
    errno = trouble;
    return 1;
}

static void flush_takes_time(void) {
    int trouble = said();
    if (trouble < 0) pause_for(-trouble);
}

#define OPEN(name)                                            \
    int name(const char *path, int flags, ...) {              \
        va_list rest;                                         \
        va_start(rest, flags);                                \
        mode_t mode = va_arg(rest, mode_t);                   \
        va_end(rest);                                         \
        if (fails(path, flags & (O_CREAT | O_WRONLY | O_RDWR))) return -1; \
        return REAL(name)(path, flags, mode);                 \
    }
OPEN(open)
OPEN(open64)

int stat(const char *path, struct stat *found) { fails(path, 0); return REAL(stat)(path, found); }
int lstat(const char *path, struct stat *found) { fails(path, 0); return REAL(lstat)(path, found); }
int stat64(const char *path, struct stat64 *found) { fails(path, 0); return REAL(stat64)(path, found); }
int lstat64(const char *path, struct stat64 *found) { fails(path, 0); return REAL(lstat64)(path, found); }
int unlink(const char *path) { return fails(path, 1) ? -1 : REAL(unlink)(path); }
int rmdir(const char *path) { return fails(path, 1) ? -1 : REAL(rmdir)(path); }
int mkdir(const char *path, mode_t mode) { return fails(path, 1) ? -1 : REAL(mkdir)(path, mode); }
int rename(const char *from, const char *to) { return fails(from, 1) ? -1 : REAL(rename)(from, to); }
DIR *opendir(const char *path) { fails(path, 0); return REAL(opendir)(path); }
int fsync(int file) { flush_takes_time(); return REAL(fsync)(file); }
int fdatasync(int file) { flush_takes_time(); return REAL(fdatasync)(file); }
