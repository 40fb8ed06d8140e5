// SPDX-License-Identifier: MIT
// Message headers on a TCP stream: control data, several messages in one call; and what is queued. `NAME list` prints the cases.
#include <poll.h>
#include <sys/uio.h>
#include <time.h>

#include <linux/errqueue.h>  // needs time.h
#include <linux/sockios.h>

#include <initializer_list>

#include "peer.h"

using namespace testlib;

namespace {

char g_buffer[4096];

// A recvmsg with room for an address and control data.
struct Received {
  alignas(struct cmsghdr) char control[256];
  struct sockaddr_in name;
  struct iovec iov = {g_buffer, 100};
  struct msghdr message = {};
  Received() {
    message.msg_name = &name;
    message.msg_namelen = sizeof name;
    message.msg_iov = &iov;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    message.msg_flags = 0x55;
  }
  const struct cmsghdr* find(int level, int type) {
    for (struct cmsghdr* c = CMSG_FIRSTHDR(&message); c != nullptr; c = CMSG_NXTHDR(&message, c))
      if (c->cmsg_level == level && c->cmsg_type == type) return c;
    return nullptr;
  }
};

void set_option(int fd, int level, int option, int value) {
  CHECK_EQ(setsockopt(fd, level, option, &value, sizeof value), 0);
}

// ---- control data -----------------------------------------------------------------------------------------------------

// Nothing was asked for: no address, no control data, no flags.
void header_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  for (const int flags : {0, int{MSG_PEEK}, int{MSG_WAITALL}, int{MSG_DONTWAIT}}) {
    peer.arrive(100);
    Received r;
    CHECK_EQ(recvmsg(fd, &r.message, flags), 100);
    peer.look(g_buffer, 100);
    if (flags == MSG_PEEK) {
      peer.take(100);
    } else {
      peer.count(100);
    }
    CHECK_EQ(r.message.msg_namelen, 0);
    CHECK_EQ(r.message.msg_controllen, 0);
    CHECK_EQ(r.message.msg_flags, 0);
    CHECK_EQ(r.message.msg_iovlen, 1);
    CHECK_EQ(r.iov.iov_len, 100);  // the vector is not changed
    CHECK(r.iov.iov_base == g_buffer);
  }
  // A failure leaves the lengths alone.
  Received r;
  CHECK_ERRNO(recvmsg(fd, &r.message, MSG_DONTWAIT), EAGAIN);
  CHECK_EQ(r.message.msg_namelen, sizeof r.name);
  CHECK_EQ(r.message.msg_controllen, sizeof r.control);
  r.message.msg_namelen = hidden(static_cast<socklen_t>(-1));
  CHECK_ERRNO(recvmsg(fd, &r.message, MSG_DONTWAIT), EINVAL);
  peer.now(Do::kHalfClose);
  Received end;
  CHECK_EQ(recvmsg(fd, &end.message, 0), 0);
  CHECK_EQ(end.message.msg_namelen, 0);
  CHECK_EQ(end.message.msg_controllen, 0);
  CHECK_EQ(end.message.msg_flags, 0);
  close(fd);
}

// SO_TIMESTAMP, switched on in the middle of the stream: each recvmsg tells when its bytes came. (The kernel starts to stamp a
// little later than it is asked to.)
void timestamp_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  for (const int option : {SO_TIMESTAMP, SO_TIMESTAMPNS}) {
    set_option(fd, SOL_SOCKET, option, 1);
    bool stamped = false;
    for (int i = 0; i < 100 && !stamped; i++) {
      peer.arrive(100);
      Received r;
      CHECK_EQ(recvmsg(fd, &r.message, 0), 100);
      peer.took(g_buffer, 100);
      CHECK_EQ(r.message.msg_flags, 0);
      const struct cmsghdr* c = r.find(SOL_SOCKET, option);
      if (c == nullptr) {
        CHECK_EQ(r.message.msg_controllen, 0);
        sleep_ms(5);
        continue;
      }
      long seconds;
      memcpy(&seconds, CMSG_DATA(c), sizeof seconds);
      const long now = time(nullptr);
      CHECK(seconds <= now + 1 && seconds >= now - 60);
      stamped = true;
    }
    CHECK(stamped);
    // No room for it: MSG_CTRUNC.
    peer.arrive(10);
    Received r;
    r.message.msg_control = nullptr;
    r.message.msg_controllen = 0;
    CHECK_EQ(recvmsg(fd, &r.message, 0), 10);
    peer.took(g_buffer, 10);
    CHECK_EQ(r.message.msg_flags, MSG_CTRUNC);
    set_option(fd, SOL_SOCKET, option, 0);
    peer.arrive(10);
    Received off;
    CHECK_EQ(recvmsg(fd, &off.message, 0), 10);
    peer.took(g_buffer, 10);
    CHECK_EQ(off.message.msg_controllen, 0);
  }
  peer.finish();
}

int told_inq(Received* r) {
  const struct cmsghdr* c = r->find(IPPROTO_TCP, TCP_CM_INQ);
  CHECK(c != nullptr);
  int left;
  memcpy(&left, CMSG_DATA(c), sizeof left);
  return left;
}

// TCP_INQ: how much is still there after this call.
void inq_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  set_option(fd, IPPROTO_TCP, TCP_INQ, 1);
  for (int round = 0; round < 20; round++) {
    peer.arrive(250);
    for (const int left : {150, 50, 0}) {
      Received r;
      const ssize_t n = recvmsg(fd, &r.message, 0);
      CHECK(n > 0);
      peer.took(g_buffer, static_cast<size_t>(n));
      CHECK_EQ(told_inq(&r), left);
    }
  }
  // Too little room for it, and none.
  for (const size_t room : {sizeof(struct cmsghdr) + 2, size_t{5}, size_t{0}}) {
    peer.arrive(10);
    Received r;
    r.message.msg_controllen = room;
    CHECK_EQ(recvmsg(fd, &r.message, 0), 10);
    peer.took(g_buffer, 10);
    CHECK_EQ(r.message.msg_flags, MSG_CTRUNC);
    CHECK_EQ(r.message.msg_controllen, room < sizeof(struct cmsghdr) ? 0 : room);
  }
  set_option(fd, IPPROTO_TCP, TCP_INQ, 0);
  peer.arrive(10);
  Received off;
  CHECK_EQ(recvmsg(fd, &off.message, 0), 10);
  peer.took(g_buffer, 10);
  CHECK_EQ(off.message.msg_controllen, 0);
  set_option(fd, IPPROTO_TCP, TCP_INQ, 1);
  peer.now(Do::kHalfClose);
  Received end;
  CHECK_EQ(recvmsg(fd, &end.message, 0), 0);
  CHECK_EQ(told_inq(&end), 1);  // go on reading: the end is there
  close(fd);
}

// SO_ZEROCOPY alone changes nothing; of a send with MSG_ZEROCOPY the error queue tells when its memory is free again.
void expect_completion(int fd, unsigned number) {
  struct pollfd p = {fd, POLLIN, 0};
  CHECK_EQ(poll(&p, 1, 10000), 1);
  CHECK_EQ(p.revents, POLLERR);
  Received r;
  CHECK_EQ(recvmsg(fd, &r.message, MSG_ERRQUEUE), 0);
  const struct cmsghdr* c = r.find(IPPROTO_IP, IP_RECVERR);
  CHECK(c != nullptr);
  struct sock_extended_err told;
  memcpy(&told, CMSG_DATA(c), sizeof told);
  CHECK_EQ(told.ee_origin, SO_EE_ORIGIN_ZEROCOPY);
  CHECK_EQ(told.ee_info, number);
  CHECK_EQ(told.ee_data, number);
}

void zerocopy_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  set_option(fd, SOL_SOCKET, SO_ZEROCOPY, 1);
  peer.prepare(g_buffer, 100);
  CHECK_EQ(send(fd, g_buffer, 100, MSG_NOSIGNAL), 100);
  peer.wrote(100);
  peer.drained();
  for (unsigned i = 0; i < 3; i++) {
    peer.prepare(g_buffer, 100);
    CHECK_EQ(send(fd, g_buffer, 100, MSG_NOSIGNAL | MSG_ZEROCOPY), 100);
    peer.wrote(100);
    expect_completion(fd, i);
  }
  // More than one step of the library's: one completion all the same.
  static char large[300000];
  peer.prepare(large, sizeof large);
  peer.wrote(sizeof large);
  peer.start_draining();
  CHECK_EQ(send(fd, large, sizeof large, MSG_NOSIGNAL | MSG_ZEROCOPY), sizeof large);
  expect_completion(fd, 3);
  struct pollfd p = {fd, 0, 0};
  CHECK_EQ(poll(&p, 1, 50), 0);
  peer.finish();
}

// An accepted socket has SO_ZEROCOPY from its listener; a completion that nobody has fetched yet makes nothing readable.
void zerocopy_inherited_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  const int listener = listen_on("127.0.0.1");
  set_option(listener, SOL_SOCKET, SO_ZEROCOPY, 1);
  const int connected = connect_to("127.0.0.1", port_of(listener));
  const int accepted = accept_one(listener);
  for (int i = 0; i < 100; i++) {
    CHECK_EQ(send(accepted, g_buffer, 100, i == 0 ? MSG_ZEROCOPY : 0), 100);
    CHECK_EQ(recv(connected, g_buffer, 100, MSG_WAITALL), 100);
    CHECK_EQ(send(connected, g_buffer, 100, 0), 100);
    CHECK_EQ(recv(accepted, g_buffer, 100, MSG_WAITALL), 100);
  }
  expect_completion(accepted, 0);
  struct pollfd p = {accepted, POLLIN, 0};
  CHECK_EQ(poll(&p, 1, 50), 0);
  CHECK_ERRNO(recv(accepted, g_buffer, 1, MSG_DONTWAIT), EAGAIN);
  for (const int each : {listener, connected, accepted}) close(each);
  peer.finish();
}

// Control data on the way out: what means nothing to TCP is ignored or refused, and nothing is sent then.
void control_out_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  Received r;
  r.message.msg_name = nullptr;
  r.message.msg_namelen = 0;
  r.message.msg_controllen = CMSG_SPACE(sizeof(int));
  memset(r.control, 0, sizeof r.control);
  struct cmsghdr* c = CMSG_FIRSTHDR(&r.message);
  c->cmsg_len = CMSG_LEN(sizeof(int));
  c->cmsg_level = SOL_SOCKET;
  c->cmsg_type = SCM_RIGHTS;
  peer.prepare(g_buffer, 100);
  CHECK_EQ(sendmsg(fd, &r.message, MSG_NOSIGNAL), 100);  // descriptors do not travel over TCP, but are no error
  peer.wrote(100);
  c->cmsg_type = 12345;
  CHECK_ERRNO(sendmsg(fd, &r.message, MSG_NOSIGNAL), EINVAL);
  c->cmsg_level = IPPROTO_IPV6;  // another protocol's
  peer.prepare(g_buffer, 100);
  CHECK_EQ(sendmsg(fd, &r.message, MSG_NOSIGNAL), 100);
  peer.wrote(100);
  c->cmsg_len = 3;  // shorter than its header
  CHECK_ERRNO(sendmsg(fd, &r.message, MSG_NOSIGNAL), EINVAL);
  peer.drained();
  peer.finish();
}

// An address on a connected stream is ignored, even a wrong one.
void address_out_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  Address other = make_address("127.0.0.9", 9);
  peer.prepare(g_buffer, 100);
  CHECK_EQ(sendto(fd, g_buffer, 100, MSG_NOSIGNAL, other.get(), other.length), 100);
  peer.wrote(100);
  struct iovec iov = {g_buffer, 50};
  struct msghdr message = {};
  message.msg_name = other.get();
  message.msg_namelen = other.length;
  message.msg_iov = &iov;
  message.msg_iovlen = 1;
  peer.prepare(g_buffer, 50);
  CHECK_EQ(sendmsg(fd, &message, MSG_NOSIGNAL), 50);
  peer.wrote(50);
  peer.drained();
  CHECK_ERRNO(sendto(fd, g_buffer, 10, MSG_NOSIGNAL, other.get(), hidden(socklen_t{4000})), EINVAL);
  peer.finish();
}

// ---- several messages in one call -------------------------------------------------------------------------------------

struct Batch {
  struct iovec iov[8];
  struct mmsghdr messages[8];
  explicit Batch(size_t length) {
    for (size_t i = 0; i < 8; i++) {
      iov[i] = {g_buffer + i * length, length};
      messages[i] = {};
      messages[i].msg_hdr.msg_iov = &iov[i];
      messages[i].msg_hdr.msg_iovlen = 1;
      messages[i].msg_len = 4711;
    }
  }
};

void recvmmsg_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  {
    Batch b(100);  // what there is, and no wait for the rest
    peer.arrive(250);
    CHECK_EQ(recvmmsg(fd, b.messages, 8, MSG_DONTWAIT, nullptr), 3);
    CHECK_EQ(b.messages[0].msg_len, 100);
    CHECK_EQ(b.messages[2].msg_len, 50);
    CHECK_EQ(b.messages[3].msg_len, 4711);
    peer.took(g_buffer, 250);
    CHECK_ERRNO(recvmmsg(fd, b.messages, 8, MSG_DONTWAIT, nullptr), EAGAIN);
    CHECK_EQ(recvmmsg(fd, b.messages, 0, 0, nullptr), 0);
  }
  {
    Batch b(100);  // MSG_WAITFORONE waits for the first only
    peer.when_asleep(Do::kSend, 120);
    CHECK_EQ(recvmmsg(fd, b.messages, 8, MSG_WAITFORONE, nullptr), 2);
    CHECK_EQ(b.messages[1].msg_len, 20);
    peer.took(g_buffer, 120);
    peer.settle();
  }
  {
    Batch b(100);  // without it, for all
    for (int i = 0; i < 3; i++) peer.when_asleep(Do::kSend, 100);
    CHECK_EQ(recvmmsg(fd, b.messages, 3, 0, nullptr), 3);
    peer.took(g_buffer, 300);
    peer.settle();
  }
  peer.finish();
}

// recvmmsg looks for a pending error first, even when there is data; the data is still there.
void recvmmsg_end_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  peer.arrive(150);
  peer.now(Do::kReset);
  peer.await_events(POLLERR);
  Batch b(100);
  CHECK_ERRNO(recvmmsg(fd, b.messages, 8, MSG_WAITFORONE, nullptr), ECONNRESET);
  CHECK_EQ(recvmmsg(fd, b.messages, 2, MSG_WAITFORONE, nullptr), 2);
  CHECK_EQ(b.messages[0].msg_len, 100);
  CHECK_EQ(b.messages[1].msg_len, 50);
  peer.took(g_buffer, 150);
  expect_eof(fd);
  close(fd);
}

// The time-out is looked at after each message only (recvmmsg(2), BUGS): with data it counts.
void recvmmsg_timeout_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  Batch b(10);
  struct timespec zero = {0, 0};
  peer.arrive(80);
  CHECK_EQ(recvmmsg(fd, b.messages, 8, 0, &zero), 1);
  peer.took(g_buffer, 10);
  struct timespec ten = {10, 0};
  CHECK_EQ(recvmmsg(fd, b.messages, 7, 0, &ten), 7);
  peer.took(g_buffer, 70);
  CHECK(ten.tv_sec == 9);  // what is left of it
  struct timespec bad = {0, 2000000000};
  CHECK_ERRNO(recvmmsg(fd, b.messages, 8, 0, &bad), EINVAL);
  peer.finish();
}

void sendmmsg_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  peer.prepare(g_buffer, 800);
  Batch b(100);
  CHECK_EQ(sendmmsg(fd, b.messages, 8, MSG_NOSIGNAL), 8);
  for (const struct mmsghdr& m : b.messages) CHECK_EQ(m.msg_len, 100);
  peer.wrote(800);
  peer.drained();
  // An error behind the first message: the count so far, the error only if it comes again.
  peer.prepare(g_buffer, 200);
  b.messages[2].msg_hdr.msg_iovlen = 2000;
  CHECK_EQ(sendmmsg(fd, b.messages, 8, MSG_NOSIGNAL), 2);
  peer.wrote(200);
  CHECK_ERRNO(sendmmsg(fd, b.messages + 2, 6, MSG_NOSIGNAL), EMSGSIZE);
  CHECK_EQ(sendmmsg(fd, b.messages, 0, MSG_NOSIGNAL), 0);
  peer.drained();
  // A full stream: what fits.
  peer.fill();
  Batch full(500);
  int n;
  do {
    peer.prepare(g_buffer, 4000);
    n = sendmmsg(fd, full.messages, 8, MSG_NOSIGNAL | MSG_DONTWAIT);
    for (int i = 0; i < n; i++) {
      CHECK(i == n - 1 || full.messages[i].msg_len == 500);
      peer.wrote(full.messages[i].msg_len);
    }
  } while (n > 0);
  CHECK_EQ(n, -1);
  CHECK_EQ(errno, EAGAIN);
  peer.drained();
  peer.finish();
}

// ---- what is queued ---------------------------------------------------------------------------------------------------

int queued(int fd, unsigned long request) {
  int value = -1;
  CHECK_EQ(ioctl(fd, request, &value), 0);
  CHECK(value >= 0);
  return value;
}

void queue_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  peer.put(2000);
  CHECK(queued(fd, SIOCOUTQ) <= 2100);  // with the end of the warm-up, if that is not acknowledged yet
  peer.drained();
  const int64_t deadline = now_ms() + 5000;
  while (queued(fd, TIOCOUTQ) != 0) CHECK(now_ms() < deadline);  // 0 once all is read
  CHECK_EQ(queued(fd, SIOCOUTQNSD), 0);
  const uint64_t filled = peer.fill();
  CHECK(queued(fd, SIOCOUTQ) > 0);
  CHECK(static_cast<uint64_t>(queued(fd, SIOCOUTQ)) <= filled);
  peer.drained();
  while (queued(fd, SIOCOUTQ) != 0) CHECK(now_ms() < deadline + 5000);
  // The other direction: peeking takes nothing away; an end adds nothing.
  peer.arrive(300);
  CHECK_EQ(recv(fd, g_buffer, 100, MSG_PEEK), 100);
  CHECK_EQ(queued(fd, FIONREAD), 300);
  peer.take(100);
  CHECK_EQ(queued(fd, SIOCINQ), 200);
  peer.now(Do::kHalfClose);
  peer.await_events(POLLRDHUP);
  CHECK_EQ(queued(fd, FIONREAD), 200);
  peer.take(200);
  CHECK_EQ(queued(fd, FIONREAD), 0);
  expect_eof(fd);
  close(fd);
}

// FIONBIO is O_NONBLOCK.
void fionbio_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  int on = 1;
  CHECK_EQ(ioctl(fd, FIONBIO, &on), 0);
  CHECK_EQ(fcntl(fd, F_GETFL) & O_NONBLOCK, O_NONBLOCK);
  CHECK_ERRNO(read(fd, g_buffer, 1), EAGAIN);
  on = 0;
  CHECK_EQ(ioctl(fd, FIONBIO, &on), 0);
  CHECK_EQ(fcntl(fd, F_GETFL) & O_NONBLOCK, 0);
  peer.when_asleep(Do::kSend, 10);
  CHECK_EQ(read(fd, g_buffer, 100), 10);
  peer.took(g_buffer, 10);
  CHECK_ERRNO(ioctl(fd, hidden(0xdeadul)), ENOTTY);
  peer.finish();
}

const Case kCases[] = {
    {"header", header_server, obedient_client},
    {"timestamp", timestamp_server, obedient_client},
    {"inq", inq_server, obedient_client},
    {"zerocopy", zerocopy_server, obedient_client},
    {"zerocopy_inherited", zerocopy_inherited_server, obedient_client},
    {"control_out", control_out_server, obedient_client},
    {"address_out", address_out_server, obedient_client},
    {"recvmmsg", recvmmsg_server, obedient_client},
    {"recvmmsg_end", recvmmsg_end_server, obedient_client},
    {"recvmmsg_timeout", recvmmsg_timeout_server, obedient_client},
    {"sendmmsg", sendmmsg_server, obedient_client},
    {"queue", queue_server, obedient_client},
    {"fionbio", fionbio_server, obedient_client},
};

}  // namespace

int main(int argc, char** argv) { return case_main(argc, argv, kCases); }
