// SPDX-License-Identifier: MIT
// Public names of glibc that its headers declare only under _FORTIFY_SOURCE or not at all. Signatures: debug/*_chk.c,
// include/sys/socket.h of glibc 2.36.
#pragma once
#include <aio.h>
#include <dirent.h>
#include <execinfo.h>
#include <fcntl.h>
#include <mqueue.h>
#include <poll.h>
#include <sched.h>
#include <pty.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/fanotify.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/select.h>
#include <sys/sendfile.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <unistd.h>
#include <utmp.h>

extern "C" {
#include <sys/pidfd.h>  // glibc 2.36 forgot to say so itself
}

extern "C" {
ssize_t __read_chk(int fd, void* buf, size_t n, size_t buf_len);
ssize_t __recv_chk(int fd, void* buf, size_t n, size_t buf_len, int flags);
ssize_t __recvfrom_chk(int fd, void* buf, size_t n, size_t buf_len, int flags, struct sockaddr* from, socklen_t* len);
int __dprintf_chk(int fd, int flag, const char* format, ...);
int __vdprintf_chk(int fd, int flag, const char* format, va_list arguments);
int __poll_chk(struct pollfd* fds, nfds_t n, int timeout, size_t fds_len);
int __ppoll_chk(struct pollfd* fds, nfds_t n, const struct timespec* timeout, const sigset_t* mask, size_t fds_len);
int __open_2(const char* path, int flags);
int __open64_2(const char* path, int flags);
int __openat_2(int dir, const char* path, int flags);
int __openat64_2(int dir, const char* path, int flags);
mqd_t __mq_open_2(const char* name, int flags) noexcept;
}

// Second public names of the same calls.
extern "C" decltype(::read) __read;
extern "C" decltype(::write) __write;
extern "C" decltype(::send) __send;
extern "C" decltype(::connect) __connect;
extern "C" decltype(::close) __close;
extern "C" decltype(::poll) __poll;
extern "C" decltype(::select) __select;
extern "C" decltype(::dup2) __dup2;
extern "C" decltype(::fcntl) __fcntl;
extern "C" decltype(::sendmmsg) __sendmmsg;
extern "C" decltype(::open) __open;
extern "C" decltype(::open64) __open64;
extern "C" decltype(::pipe) __pipe;
extern "C" decltype(::fdopen) _IO_fdopen;
extern "C" decltype(::clone) __clone;
extern "C" decltype(::sigaction) __sigaction;
extern "C" decltype(::signal) bsd_signal;
extern "C" decltype(::popen) _IO_popen;
extern "C" decltype(::fopen) _IO_fopen;
extern "C" decltype(::fclose) _IO_fclose;
extern "C" decltype(::backtrace_symbols_fd) __backtrace_symbols_fd;
