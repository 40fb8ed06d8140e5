// SPDX-License-Identifier: MIT
// The rarer names of libc for what a program does with a stream and with descriptor numbers, and the system calls by number.
// `NAME list` prints the cases.
#include <aio.h>
#include <dirent.h>
#include <mqueue.h>
#include <poll.h>
#include <pty.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <utmp.h>

#include "case_main.h"

using namespace testlib;

namespace {

constexpr uint64_t kUp = 81;
constexpr long kMaskSize = 8;  // the kernel's sigset_t

void echo_server(int fd, const Sync& sync) {
  char buffer[4096];
  ssize_t n;
  while ((n = recv(fd, buffer, sizeof buffer, 0)) > 0) send_all(fd, buffer, static_cast<size_t>(n));
  CHECK_EQ(n, 0);
  sync.post();
  close(fd);
}

void finish(int fd, const Sync& sync) {
  CHECK_EQ(shutdown(fd, SHUT_WR), 0);
  expect_eof(fd);
  close(fd);
  sync.wait();
}

// ---- positions --------------------------------------------------------------------------------------------------------

// What the kernel refuses on a socket takes no byte and leaves none: the echo comes back whole.
void refused(int fd) {
  char byte[8] = {};
  const struct iovec part = {byte, sizeof byte};
  int ends[2];
  CHECK_EQ(pipe(ends), 0);
  const int file = static_cast<int>(memfd_create("file", 0));
  CHECK_EQ(write(file, byte, sizeof byte), sizeof byte);
  CHECK_ERRNO(pread(fd, byte, sizeof byte, 0), ESPIPE);
  CHECK_ERRNO(pwrite(fd, byte, sizeof byte, 0), ESPIPE);
  CHECK_ERRNO(preadv(fd, &part, 1, 0), ESPIPE);
  CHECK_ERRNO(pwritev(fd, &part, 1, 0), ESPIPE);
  CHECK_ERRNO(preadv(fd, &part, 1, hidden(-1)), EINVAL);
  CHECK_ERRNO(preadv2(fd, &part, 1, 0, 0), ESPIPE);
  CHECK_ERRNO(pwritev2(fd, &part, 1, 0, 0), ESPIPE);
  CHECK_ERRNO(lseek(fd, 0, SEEK_CUR), ESPIPE);
  CHECK_ERRNO(tee(fd, ends[1], 4, 0), EINVAL);
  CHECK_ERRNO(vmsplice(fd, &part, 1, 0), EBADF);
  CHECK_ERRNO(copy_file_range(file, nullptr, fd, nullptr, 4, 0), EINVAL);
  CHECK_ERRNO(copy_file_range(fd, nullptr, file, nullptr, 4, 0), EINVAL);
  CHECK_ERRNO(fsync(fd), EINVAL);
  CHECK_ERRNO(readahead(fd, 0, 4), EINVAL);
  close(file);
  close(ends[0]);
  close(ends[1]);
}

// preadv2 and pwritev2 without a position are readv and writev.
void positions_client(int fd, const Sync& sync) {
  char buffer[700], got[700];
  uint64_t offset = 0;
  for (int i = 0; i < 20; i++, offset += sizeof buffer) {
    pattern_fill(buffer, sizeof buffer, kUp, offset);
    const struct iovec out[] = {{buffer, 300}, {buffer + 300, 400}};
    CHECK_EQ(pwritev2(fd, out, 2, -1, 0), sizeof buffer);
    refused(fd);
    for (size_t taken = 0; taken < sizeof got;) {
      const struct iovec in = {got + taken, sizeof got - taken};
      const ssize_t n = preadv2(fd, &in, 1, -1, 0);
      CHECK(n > 0);
      taken += static_cast<size_t>(n);
    }
    pattern_check(got, sizeof got, kUp, offset);
    const struct iovec in = {got, sizeof got};
    CHECK_ERRNO(preadv2(fd, &in, 1, -1, RWF_NOWAIT), EAGAIN);
    CHECK_ERRNO(preadv2(fd, &in, 1, -1, 0x40000000), EOPNOTSUPP);
    CHECK_ERRNO(pwritev2(fd, &in, 1, -1, 0x40000000), EOPNOTSUPP);
    CHECK_ERRNO(preadv2(fd, &in, hidden(-1), -1, 0), EINVAL);
  }
  finish(fd, sync);
}

// ---- aio --------------------------------------------------------------------------------------------------------------

// glibc's aio_read and aio_write work on sockets, with a read and a write of their own that nobody can interpose.
ssize_t complete(struct aiocb* block) {
  const struct aiocb* const list[] = {block};
  while (aio_error(block) == EINPROGRESS) aio_suspend(list, 1, nullptr);
  return aio_return(block);
}

void aio_client(int fd, const Sync& sync) {
  char buffer[200];
  uint64_t offset = 0;
  for (int i = 0; i < 10; i++, offset += sizeof buffer) {
    pattern_fill(buffer, sizeof buffer, kUp, offset);
    struct aiocb block = {};
    block.aio_fildes = fd;
    block.aio_buf = buffer;
    block.aio_nbytes = sizeof buffer;
    CHECK_EQ(aio_write(&block), 0);
    CHECK_EQ(complete(&block), sizeof buffer);
    for (size_t taken = 0; taken < sizeof buffer;) {
      block.aio_nbytes = sizeof buffer - taken;
      CHECK_EQ(aio_read(&block), 0);
      const ssize_t n = complete(&block);
      CHECK(n > 0);
      pattern_check(buffer, static_cast<size_t>(n), kUp, offset + taken);
      taken += static_cast<size_t>(n);
    }
  }
  finish(fd, sync);
}

// ---- by number --------------------------------------------------------------------------------------------------------

using Take = ssize_t (*)(int fd, void* to, size_t n);

ssize_t raw_read(int fd, void* to, size_t n) { return syscall(SYS_read, fd, to, n); }
ssize_t raw_recvfrom(int fd, void* to, size_t n) { return syscall(SYS_recvfrom, fd, to, n, 0, nullptr, nullptr); }
ssize_t raw_readv(int fd, void* to, size_t n) {
  const struct iovec part = {to, n};
  return syscall(SYS_readv, fd, &part, 1);
}
ssize_t raw_preadv2(int fd, void* to, size_t n) {
  const struct iovec part = {to, n};
  return syscall(SYS_preadv2, fd, &part, 1, -1L, -1L, 0);
}
ssize_t raw_recvmsg(int fd, void* to, size_t n) {
  struct iovec part = {to, n};
  struct msghdr message = {};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  return syscall(SYS_recvmsg, fd, &message, 0);
}
ssize_t raw_recvmmsg(int fd, void* to, size_t n) {
  struct iovec part = {to, n};
  struct mmsghdr message = {};
  message.msg_hdr.msg_iov = &part;
  message.msg_hdr.msg_iovlen = 1;
  return syscall(SYS_recvmmsg, fd, &message, 1, 0, nullptr) == 1 ? static_cast<ssize_t>(message.msg_len) : -1;
}

void raw_send(int fd, int way, char* from, size_t n) {
  struct iovec part = {from, n};
  struct mmsghdr message = {};
  message.msg_hdr.msg_iov = &part;
  message.msg_hdr.msg_iovlen = 1;
  const long all = static_cast<long>(n);
  switch (way) {
    case 0: CHECK_EQ(syscall(SYS_write, fd, from, n), all); break;
    case 1: CHECK_EQ(syscall(SYS_sendto, fd, from, n, 0, nullptr, 0), all); break;
    case 2: CHECK_EQ(syscall(SYS_writev, fd, &part, 1), all); break;
    case 3: CHECK_EQ(syscall(SYS_pwritev2, fd, &part, 1, -1L, -1L, 0), all); break;
    case 4: CHECK_EQ(syscall(SYS_sendmsg, fd, &message.msg_hdr, 0), all); break;
    default: CHECK_EQ(syscall(SYS_sendmmsg, fd, &message, 1, 0), 1); break;
  }
}

void raw_data_client(int fd, const Sync& sync) {
  const Take takes[] = {raw_read, raw_recvfrom, raw_readv, raw_preadv2, raw_recvmsg, raw_recvmmsg};
  uint64_t offset = 0;
  for (int i = 0; i < 60; i++, offset += 200) {
    char buffer[200];
    pattern_fill(buffer, sizeof buffer, kUp, offset);
    raw_send(fd, i % 6, buffer, sizeof buffer);
    for (size_t taken = 0; taken < sizeof buffer;) {
      const ssize_t n = takes[i % 6](fd, buffer, sizeof buffer - taken);
      CHECK(n > 0);
      pattern_check(buffer, static_cast<size_t>(n), kUp, offset + taken);
      taken += static_cast<size_t>(n);
    }
  }
  CHECK_ERRNO(syscall(SYS_pread64, fd, &offset, 8, 0L), ESPIPE);
  CHECK_EQ(syscall(SYS_fcntl, fd, F_GETFD, 0), 0);
  const long copy = syscall(SYS_fcntl, fd, F_DUPFD, fd);
  CHECK(copy > fd);
  CHECK_EQ(syscall(SYS_shutdown, copy, SHUT_WR), 0);
  CHECK_EQ(syscall(SYS_close, copy), 0);
  expect_eof(fd);
  CHECK_EQ(syscall(SYS_close, fd), 0);
  sync.wait();
}

struct RawMask {
  const sigset_t* set;
  size_t size;
};

long raw_pselect(int fd, struct timespec* timeout, const RawMask* mask) {
  fd_set in;
  FD_ZERO(&in);
  FD_SET(fd, &in);
  return syscall(SYS_pselect6, fd + 1, &in, nullptr, nullptr, timeout, mask);
}

long raw_epoll(int fd, int by_number, long timeout_ms, const sigset_t* mask, long size) {
  const long set = syscall(SYS_epoll_create1, EPOLL_CLOEXEC);
  CHECK(set >= 0);
  struct epoll_event event = {};
  event.events = EPOLLIN;
  CHECK_EQ(syscall(SYS_epoll_ctl, set, EPOLL_CTL_ADD, fd, &event), 0);
  const struct timespec timeout = {0, timeout_ms * 1000000};
  long n = -1;
  if (by_number == SYS_epoll_pwait2) {
    n = syscall(SYS_epoll_pwait2, set, &event, 1, &timeout, mask, size);
  } else if (by_number == SYS_epoll_pwait) {
    n = syscall(SYS_epoll_pwait, set, &event, 1, timeout_ms, mask, size);
  } else {
    n = syscall(SYS_epoll_wait, set, &event, 1, timeout_ms);
  }
  const int error = errno;
  CHECK_EQ(syscall(SYS_close, set), 0);
  errno = error;
  return n;
}

// How many of the ways to wait find `fd` readable within `timeout_ms`.
void raw_wait(int fd, long timeout_ms, long want) {
  sigset_t mask;
  sigemptyset(&mask);
  const RawMask masked = {&mask, kMaskSize}, unmasked = {nullptr, kMaskSize};
  const auto timeout = [&] { return timespec{0, timeout_ms * 1000000}; };
  struct pollfd entry = {fd, POLLIN, 0};
  CHECK_EQ(syscall(SYS_poll, &entry, 1, timeout_ms), want);
  struct timespec left = timeout();
  CHECK_EQ(syscall(SYS_ppoll, &entry, 1, &left, &mask, kMaskSize), want);
  // The raw calls leave the time that was left, which libc's functions hide.
  CHECK(left.tv_sec == 0 && left.tv_nsec <= timeout_ms * 1000000 && (want == 1 || left.tv_nsec == 0));
  const RawMask* const masks[] = {&masked, &unmasked, nullptr};
  for (const RawMask* m : masks) {
    left = timeout();
    CHECK_EQ(raw_pselect(fd, &left, m), want);
    CHECK(left.tv_sec == 0 && left.tv_nsec <= timeout_ms * 1000000 && (want == 1 || left.tv_nsec == 0));
  }
  CHECK_EQ(raw_epoll(fd, SYS_epoll_wait, timeout_ms, nullptr, 0), want);
  CHECK_EQ(raw_epoll(fd, SYS_epoll_pwait, timeout_ms, &mask, kMaskSize), want);
  CHECK_EQ(raw_epoll(fd, SYS_epoll_pwait2, timeout_ms, &mask, kMaskSize), want);
  // A mask of another size is an error, in whatever state the stream is.
  const RawMask wrong = {&mask, sizeof mask};
  left = timeout();
  CHECK_ERRNO(syscall(SYS_ppoll, &entry, 1, &left, &mask, sizeof mask), EINVAL);
  CHECK_ERRNO(raw_pselect(fd, &left, &wrong), EINVAL);
  CHECK_ERRNO(raw_epoll(fd, SYS_epoll_pwait, 0, &mask, sizeof mask), EINVAL);
}

void raw_wait_client(int fd, const Sync& sync) {
  raw_wait(fd, 5, 0);
  send_pattern(fd, kUp, 0, 100);
  struct pollfd entry = {fd, POLLIN, 0};
  CHECK_EQ(poll(&entry, 1, 5000), 1);
  raw_wait(fd, 5, 1);
  recv_pattern(fd, kUp, 0, 100);
  finish(fd, sync);
}

// syscall() is no cancellation point: the thread that is cancelled while it reads gets its bytes first.
struct Reader {
  int fd;
  int started;
  int got;
};

void* read_by_number(void* argument) {
  auto* reader = static_cast<Reader*>(argument);
  char buffer[100];
  __atomic_store_n(&reader->started, 1, __ATOMIC_SEQ_CST);
  const long n = syscall(SYS_recvfrom, reader->fd, buffer, sizeof buffer, MSG_WAITALL, nullptr, nullptr);
  __atomic_store_n(&reader->got, static_cast<int>(n), __ATOMIC_SEQ_CST);
  pthread_testcancel();
  return nullptr;
}

void raw_cancel_client(int fd, const Sync& sync) {
  Reader reader = {fd, 0, 0};
  const pthread_t thread = start_thread(read_by_number, &reader);
  while (__atomic_load_n(&reader.started, __ATOMIC_SEQ_CST) == 0) sleep_ms(1);
  sleep_ms(30);
  CHECK_EQ(pthread_cancel(thread), 0);
  sleep_ms(30);
  CHECK_EQ(__atomic_load_n(&reader.got, __ATOMIC_SEQ_CST), 0);
  send_pattern(fd, kUp, 0, 100);
  void* result = nullptr;
  CHECK_EQ(pthread_join(thread, &result), 0);
  CHECK(result == PTHREAD_CANCELED);
  CHECK_EQ(reader.got, 100);
  finish(fd, sync);
}

// ---- numbers ----------------------------------------------------------------------------------------------------------

// As a runtime with its own system call instruction does.
long unseen(long number, long a, long b = 0, long c = 0) {
  long result;
  asm volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
  return result;
}

// What this number was before is forgotten: it is no socket.
void expect_no_stream(int fd) {
  char byte;
  CHECK_ERRNO(recv(fd, &byte, 1, MSG_DONTWAIT), ENOTSOCK);
}

int temporary(int (*make)(char*)) {
  char name[] = "/tmp/mpklink-test-XXXXXX";
  const int fd = make(name);
  CHECK_EQ(unlink(name), 0);
  return fd;
}

int open_shm() {
  char name[64];
  snprintf(name, sizeof name, "/mpklink-test-%d", getpid());
  const int fd = shm_open(name, O_CREAT | O_RDWR | O_EXCL, 0600);
  CHECK_EQ(shm_unlink(name), 0);
  return fd;
}

FILE* g_file;

int open_file() { return fileno(g_file = fopen("/dev/null", "r")); }
int open_directory() { return dirfd(opendir("/")); }

using Make = int (*)();
const Make kMakers[] = {
    [] { return open("/dev/null", O_RDONLY); },
    [] { return openat(AT_FDCWD, "/dev/null", O_RDONLY); },
    [] { return creat("/dev/null", 0600); },
    [] { return temporary(mkstemp); },
    [] { return temporary([](char* name) { return mkostemp(name, O_CLOEXEC); }); },
    [] { return temporary([](char* name) { return mkstemps(name, 0); }); },
    open_shm,
    open_file,
    open_directory,
    [] { return fileno(tmpfile()); },
    [] { return eventfd(0, 0); },
    [] { return timerfd_create(CLOCK_MONOTONIC, 0); },
    [] { return inotify_init(); },
    [] { return inotify_init1(0); },
    [] { return memfd_create("test", 0); },
    [] { return epoll_create1(0); },
    [] { return posix_openpt(O_RDWR | O_NOCTTY); },
    [] { return static_cast<int>(syscall(SYS_openat, AT_FDCWD, "/dev/null", O_RDONLY)); },
    [] { return static_cast<int>(syscall(SYS_eventfd2, 0, 0)); },
    [] { return static_cast<int>(syscall(SYS_memfd_create, "test", 0)); },
    [] { return static_cast<int>(syscall(SYS_timerfd_create, CLOCK_MONOTONIC, 0)); },
    [] { return static_cast<int>(syscall(SYS_inotify_init1, 0)); },
    [] { return static_cast<int>(syscall(SYS_pidfd_open, getpid(), 0)); },
    [] { return static_cast<int>(syscall(SYS_epoll_create1, 0)); },
};

// A copy of the stream is closed unseen; whatever is opened next gets its number.
void makers_client(int fd, const Sync& sync) {
  for (const Make make : kMakers) {
    const int copy = dup(fd);
    CHECK_EQ(unseen(SYS_close, copy), 0);
    CHECK_EQ(make(), copy);
    expect_no_stream(copy);
    CHECK_EQ(close(copy), 0);
  }
  const int copy = dup(fd);
  CHECK_EQ(unseen(SYS_close, copy), 0);
  int master, slave;
  CHECK_EQ(openpty(&master, &slave, nullptr, nullptr, nullptr), 0);
  CHECK_EQ(master, copy);
  expect_no_stream(master);
  close(master);
  close(slave);
  send_pattern(fd, kUp, 0, 100);
  recv_pattern(fd, kUp, 0, 100);
  finish(fd, sync);
}

// libc itself closes the number: fclose and freopen.
void closers_client(int fd, const Sync& sync) {
  FILE* file = fopen("/dev/null", "r");
  const int number = fileno(file);
  CHECK_EQ(dup2(fd, number), number);
  CHECK_EQ(fclose(file), 0);
  CHECK_EQ(unseen(SYS_open, reinterpret_cast<long>("/dev/null"), O_RDONLY), number);
  expect_no_stream(number);
  CHECK_EQ(unseen(SYS_close, number), 0);

  file = fopen("/dev/null", "r");
  CHECK_EQ(dup2(fd, fileno(file)), number);
  file = freopen("/dev/zero", "r", file);
  CHECK(file != nullptr && fileno(file) == number);
  expect_no_stream(number);
  CHECK_EQ(fclose(file), 0);
  send_pattern(fd, kUp, 0, 100);
  recv_pattern(fd, kUp, 0, 100);
  finish(fd, sync);
}

// Standard input is the stream until libc replaces it, in the child.
void standard_client(int fd, const Sync& sync) {
  int ends[2];
  CHECK_EQ(pipe(ends), 0);
  const int before = dup(0);
  CHECK_EQ(dup2(fd, 0), 0);
  pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    CHECK_EQ(daemon(1, 0), 0);
    char byte;
    const char good = recv(0, &byte, 1, MSG_DONTWAIT) == -1 && errno == ENOTSOCK;
    CHECK_EQ(write(ends[1], &good, 1), 1);
    _exit(0);
  }
  char good = 0;
  CHECK_EQ(read(ends[0], &good, 1), 1);
  CHECK_EQ(good, 1);
  CHECK_EQ(waitpid(child, nullptr, 0), child);

  int master;
  child = forkpty(&master, nullptr, nullptr, nullptr);
  CHECK(child >= 0);
  if (child == 0) {
    char byte;
    good = recv(0, &byte, 1, MSG_DONTWAIT) == -1 && errno == ENOTSOCK;
    CHECK_EQ(write(ends[1], &good, 1), 1);
    _exit(0);
  }
  good = 0;
  CHECK_EQ(read(ends[0], &good, 1), 1);
  CHECK_EQ(good, 1);
  CHECK_EQ(waitpid(child, nullptr, 0), child);
  close(master);

  CHECK_EQ(dup2(before, 0), 0);
  finish(fd, sync);
}

const Case kCases[] = {
    {"positions", echo_server, positions_client}, {"raw_data", echo_server, raw_data_client},
    {"raw_wait", echo_server, raw_wait_client},   {"raw_cancel", echo_server, raw_cancel_client},
    {"makers", echo_server, makers_client},       {"closers", echo_server, closers_client},
    {"standard", echo_server, standard_client},   {"aio", echo_server, aio_client},
};

}  // namespace

int main(int argc, char** argv) { return case_main(argc, argv, kCases); }
