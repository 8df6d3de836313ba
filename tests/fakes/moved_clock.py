"""A clock that stands at another time, for whole processes: what they read is moved by some time.

A library, compiled here, stands before the C library's own in every process that has it in its
environment (ld.so(8), LD_PRELOAD). It moves the time of day and the waits that are given as a time
of day; monotonic clocks run as ever. What an appliance does under it, it does as if it had been
made and used then. By how much is said once for all (`surroundings`), or in a file that they look
into all the time (`settable`, `set_to`): so a clock is set while they run.
"""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

_SOURCE = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>

static time_t moved(void) {
    static volatile long *set;
    const char *text = getenv("MOVED_CLOCK"), *path = getenv("MOVED_CLOCK_FILE");
    if (!set && path) {
        int file = open(path, O_RDONLY | O_CLOEXEC);
        void *found = mmap(0, sizeof *set, PROT_READ, MAP_SHARED, file, 0);
        if (found != MAP_FAILED) set = found;
        close(file);
    }
    return set ? *set : text ? atol(text) : 0;
}
#define REAL(name) ((__typeof__(&name)) dlsym(RTLD_NEXT, #name))

int clock_gettime(clockid_t id, struct timespec *at) {
    static __typeof__(&clock_gettime) real;
    if (!real) real = REAL(clock_gettime);
    int failed = real(id, at);
    if (!failed && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) at->tv_sec += moved();
    return failed;
}
time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}
int gettimeofday(struct timeval *restrict at, void *restrict zone) {
    (void) zone;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return 0;
}
/* The kernel knows nothing of it: a wait until a time of day must end at that time of its own. */
int pthread_cond_timedwait(pthread_cond_t *restrict condition, pthread_mutex_t *restrict mutex,
                           const struct timespec *restrict until) {
    struct timespec real_until = *until, now;
    clock_gettime(CLOCK_REALTIME, &now);
    /* One that counts on the monotonic clock is far from the time of day. */
    if (llabs((long long) until->tv_sec - now.tv_sec) < 86400L * 3650) real_until.tv_sec -= moved();
    return REAL(pthread_cond_timedwait)(condition, mutex, &real_until);
}
long syscall(long number, ...) {
    static __typeof__(&syscall) real;
    if (!real) real = REAL(syscall);
    long given[6];
    va_list list;
    va_start(list, number);
    for (int i = 0; i < 6; i++) given[i] = va_arg(list, long);
    va_end(list);
    struct timespec real_until;
    if (number == SYS_futex && given[3] && (given[1] & FUTEX_CLOCK_REALTIME)) {
        real_until = *(struct timespec *) given[3];
        real_until.tv_sec -= moved();
        given[3] = (long) &real_until;
    }
    return real(number, given[0], given[1], given[2], given[3], given[4], given[5]);
}
"""


def build(folder: Path) -> Path:
    """Compile the library; it takes a C compiler, as setting the project up does."""
    source, library = folder / "moved_clock.c", folder / "moved_clock.so"
    source.write_text(_SOURCE)
    command = ["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"]
    subprocess.run(command, check=True, capture_output=True)
    return library


def surroundings(library: Path, by: timedelta) -> dict[str, str]:
    """The environment of processes whose clock is moved `by` that much."""
    return {"LD_PRELOAD": str(library), "MOVED_CLOCK": str(int(by.total_seconds()))}


def settable(library: Path, file: Path) -> dict[str, str]:
    """The environment of processes whose clock is set by `set_to`; it is right at first."""
    file.write_bytes(_long(timedelta()))
    return {"LD_PRELOAD": str(library), "MOVED_CLOCK_FILE": str(file)}


def set_to(file: Path, by: timedelta) -> None:
    """Move the clocks of all processes that look into this file, at once."""
    with file.open("r+b") as held:
        held.write(_long(by))


def _long(by: timedelta) -> bytes:
    return int(by.total_seconds()).to_bytes(8, sys.byteorder, signed=True)
