// SPDX-License-Identifier: MIT
// What libc's calls do with bad pointers and bad lengths where no connection is about, and with the default action of SIGSEGV.
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <initializer_list>

#include "testlib.h"

using namespace testlib;

namespace {

// Volatile: the compiler would warn of it.
volatile uintptr_t g_bad = 64;

template <class T>
T* bad() {
  return reinterpret_cast<T*>(g_bad);
}

void check_waits() {
  CHECK_ERRNO(poll(bad<struct pollfd>(), 1, 0), EFAULT);
  CHECK_ERRNO(select(5, bad<fd_set>(), nullptr, nullptr, nullptr), EFAULT);
  CHECK_ERRNO(syscall(SYS_ppoll, bad<struct pollfd>(), 1, nullptr, nullptr, 8), EFAULT);
  CHECK_ERRNO(syscall(SYS_ppoll, nullptr, 0, bad<struct timespec>(), nullptr, 8), EFAULT);
  CHECK_ERRNO(syscall(SYS_pselect6, 0, nullptr, nullptr, nullptr, nullptr, bad<char>()), EFAULT);
  const int set = epoll_create1(EPOLL_CLOEXEC);
  struct epoll_event event;
  CHECK_ERRNO(syscall(SYS_epoll_pwait2, set, &event, 1, bad<struct timespec>(), nullptr, 8), EFAULT);
  const int inner = epoll_create1(EPOLL_CLOEXEC);
  CHECK_ERRNO(epoll_ctl(set, EPOLL_CTL_ADD, inner, bad<struct epoll_event>()), EFAULT);
  close(inner);
  close(set);
}

void check_messages() {
  int ends[2];
  CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
  CHECK_ERRNO(sendmsg(ends[0], bad<struct msghdr>(), 0), EFAULT);
  CHECK_ERRNO(sendmmsg(ends[0], bad<struct mmsghdr>(), 1, 0), EFAULT);
  char byte = 'x';
  struct iovec part = {&byte, 1};
  struct cmsghdr control = {};  // shorter than itself
  control.cmsg_level = SOL_SOCKET;
  control.cmsg_type = SCM_RIGHTS;
  struct msghdr message = {};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = &control;
  message.msg_controllen = sizeof control;
  CHECK_ERRNO(sendmsg(ends[0], &message, 0), EINVAL);
  message.msg_control = bad<char>();
  CHECK_ERRNO(sendmsg(ends[0], &message, 0), EFAULT);
  close(ends[0]);
  close(ends[1]);
  const int datagrams = socket(AF_INET, SOCK_DGRAM, 0);
  CHECK_ERRNO(sendto(datagrams, "x", 1, 0, bad<struct sockaddr>(), sizeof(struct sockaddr_in)), EFAULT);
  close(datagrams);
}

void check_accept() {
  const int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
  struct sockaddr_storage address = {};
  address.ss_family = AF_UNIX;
  CHECK_EQ(bind(listener, reinterpret_cast<struct sockaddr*>(&address), sizeof(sa_family_t)), 0);  // a name of the kernel's choice
  socklen_t size = sizeof address;
  CHECK_EQ(getsockname(listener, reinterpret_cast<struct sockaddr*>(&address), &size), 0);
  CHECK_EQ(listen(listener, 1), 0);
  struct sockaddr_storage from;
  CHECK_ERRNO(accept(listener, reinterpret_cast<struct sockaddr*>(&from), bad<socklen_t>()), EAGAIN);
  const int caller = socket(AF_UNIX, SOCK_STREAM, 0);
  CHECK_EQ(connect(caller, reinterpret_cast<struct sockaddr*>(&address), size), 0);
  CHECK_ERRNO(accept(listener, reinterpret_cast<struct sockaddr*>(&from), nullptr), EFAULT);
  close(caller);
  close(listener);
}

void check_close_range() {
  CHECK_ERRNO(close_range(5, 3, 0), EINVAL);
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  CHECK_ERRNO(close_range(3, 100, 1 << 10), EINVAL);
  CHECK(fcntl(fd, F_GETFD) >= 0);
  close(fd);
}

// A first message that is to open its connection.
void check_fast_open() {
  const int listener = listen_on("127.0.0.1");
  struct sockaddr_storage address;
  socklen_t size = sizeof address;
  CHECK_EQ(getsockname(listener, reinterpret_cast<struct sockaddr*>(&address), &size), 0);
  const int fd = socket(address.ss_family, SOCK_STREAM, 0);
  char byte = 'x';
  struct iovec part = {&byte, 1};
  struct msghdr message = {};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_name = &address;
  message.msg_namelen = size;
  CHECK_EQ(sendmsg(fd, &message, MSG_FASTOPEN), 1);
  close(fd);
  close(listener);
}

int g_calls = 0;

// As crash handlers are written: report, and die of it.
void report_and_die(int number) {
  if (++g_calls > 1) _exit(1);
  signal(number, SIG_DFL);
  raise(number);
}

void check_default_action() {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  for (const int number : {SIGSEGV, SIGBUS}) {
    CHECK(signal(number, report_and_die) == SIG_DFL);
    CHECK(signal(number, SIG_DFL) == report_and_die);
    struct sigaction action;
    CHECK_EQ(sigaction(number, nullptr, &action), 0);
    CHECK(action.sa_handler == SIG_DFL);
    signal(number, report_and_die);
    const pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
      raise(number);
      _exit(2);
    }
    int status;
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK(WIFSIGNALED(status));
    CHECK_EQ(WTERMSIG(status), number);
    signal(number, SIG_DFL);
  }
  close(fd);
}

}  // namespace

int main() {
  for (const bool tcp_before : {false, true}) {
    // Once as a program that never had a TCP socket, once as one that had.
    if (tcp_before) close(socket(AF_INET, SOCK_STREAM, 0));
    check_messages();
    check_accept();
    check_waits();
  }
  check_close_range();
  check_fast_open();
  check_default_action();
  return succeed();
}
