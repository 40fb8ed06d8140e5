// SPDX-License-Identifier: MIT
// One send or one receive by a call chosen at random, and what TCP promises about its result.
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/uio.h>

#include "stress.h"

namespace stress {
namespace {

constexpr unsigned kParts = 5;
constexpr char kCanary = 0x5A;

// Cuts [buffer, buffer + n) into up to kParts pieces, some of them empty.
unsigned cut(Worker* w, char* buffer, size_t n, struct iovec* parts) {
  const unsigned count = 1 + static_cast<unsigned>(w->below(kParts));
  size_t at = 0;
  for (unsigned i = 0; i < count; i++) {
    const size_t length = i + 1 == count ? n - at : w->below(n - at + 1) >> w->below(4);
    parts[i] = {buffer + at, length};
    at += length;
  }
  return count;
}

// No thread but ours can have changed anything, and no signal comes: a blocking call has to do all of it.
bool undisturbed(const Worker* w, const Conn* c, int flags) {
  return c->cls == Class::kDedicated && !c->toggles && !w->signals && !(flags & MSG_DONTWAIT);
}

struct Call {
  Operation op;
  int fd;
  char* buffer;
  size_t want;
  int flags;
};

// ---- sending ---------------------------------------------------------------------------------------------------------------

// Several messages; the kernel stops at the first short one (since Linux 4.6), or the rest would be out of place.
ssize_t send_messages(Worker* w, const Conn* c, const Call& call) {
  struct iovec parts[kParts];
  struct mmsghdr messages[kParts];
  memset(messages, 0, sizeof messages);
  unsigned n = cut(w, call.buffer, call.want, parts);
  while (parts[0].iov_len == 0) memmove(parts, parts + 1, --n * sizeof parts[0]);  // nothing sent would be a success
  for (unsigned i = 0; i < n; i++) {
    messages[i].msg_hdr.msg_iov = &parts[i];
    messages[i].msg_hdr.msg_iovlen = 1;
  }
  const int sent = sendmmsg(call.fd, messages, n, call.flags);
  if (sent < 0) return -1;
  ssize_t total = 0;
  for (int i = 0; i < sent; i++) {
    total += messages[i].msg_len;
    if (messages[i].msg_len != parts[i].iov_len && i + 1 < sent)
      broken(w, c, "sendmmsg went on after a short message", messages[i].msg_len, static_cast<long long>(parts[i].iov_len));
  }
  return total;
}

// A new file each time: TCP sends the file's pages themselves, later writes would change what is on its way.
ssize_t send_from_file(Worker* w, const Call& call) {
  const int file = memfd_create("stress", MFD_CLOEXEC);
  CHECK(file >= 0);
  off_t offset = static_cast<off_t>(w->below(5000));
  CHECK_EQ(pwrite(file, call.buffer, call.want, offset), call.want);
  off_t* position = w->one_in(2) ? &offset : nullptr;
  if (position == nullptr) CHECK_EQ(lseek(file, offset, SEEK_SET), offset);
  const ssize_t n = sendfile(call.fd, file, position, call.want);
  const int error = errno;
  CHECK_EQ(close(file), 0);
  errno = error;
  return n;
}

// Through a pipe. What the socket did not take is thrown away: it comes again from the pattern.
ssize_t send_by_splice(Worker* w, const Call& call) {
  if (w->pipe[0] < 0) CHECK_EQ(pipe(w->pipe), 0);
  const size_t n = call.want < 4096 ? call.want : 4096;
  CHECK_EQ(write(w->pipe[1], call.buffer, n), n);
  const ssize_t sent = splice(w->pipe[0], nullptr, call.fd, nullptr, n, 0);
  const int error = errno;
  for (size_t left = n - static_cast<size_t>(sent > 0 ? sent : 0); left > 0;) {
    const ssize_t back = read(w->pipe[0], call.buffer, left);
    CHECK(back > 0);
    left -= static_cast<size_t>(back);
  }
  errno = error;
  return sent;
}

ssize_t send_call(Worker* w, const Conn* c, const Call& call) {
  struct iovec parts[kParts];
  struct msghdr message = {};
  switch (call.op) {
    case kDo_write: return write(call.fd, call.buffer, call.want);
    case kDo_sendto: return sendto(call.fd, call.buffer, call.want, call.flags, nullptr, 0);
    case kDo_writev: return writev(call.fd, parts, static_cast<int>(cut(w, call.buffer, call.want, parts)));
    case kDo_sendmsg:
      message.msg_iov = parts;
      message.msg_iovlen = cut(w, call.buffer, call.want, parts);
      return sendmsg(call.fd, &message, call.flags);
    case kDo_sendmmsg: return send_messages(w, c, call);
    case kDo_sendfile: return send_from_file(w, call);
    case kDo_splice_out: return send_by_splice(w, call);
    default: return send(call.fd, call.buffer, call.want, call.flags);
  }
}

bool has_flags(Operation op) {
  switch (op) {
    case kDo_read: case kDo_readv: case kDo_write: case kDo_writev: case kDo_sendfile: case kDo_splice_in: case kDo_splice_out: return false;
    default: return true;
  }
}

template <size_t N>
Operation pick(Worker* w, const Operation (&ops)[N], Operation fallback) {
  for (int i = 0; i < 8; i++) {
    const Operation op = ops[w->below(N)];
    if (!allowed(op) || (!g_config.revoke && (op == kDo_splice_in || op == kDo_splice_out))) continue;
    return op;
  }
  return fallback;
}

// ---- receiving -------------------------------------------------------------------------------------------------------------

// The pieces are moved together, so that the buffer is what one call would have given.
ssize_t receive_messages(Worker* w, const Call& call) {
  struct iovec parts[kParts];
  struct mmsghdr messages[kParts];
  memset(messages, 0, sizeof messages);
  unsigned n = 0;
  for (size_t at = 0; n < kParts && at < call.want; n++) {  // none empty: a length of 0 is the end
    const size_t length = n + 1 == kParts ? call.want - at : 1 + w->below(call.want - at);
    parts[n] = {call.buffer + at, length};
    messages[n].msg_hdr.msg_iov = &parts[n];
    messages[n].msg_hdr.msg_iovlen = 1;
    at += length;
  }
  // With MSG_WAITFORONE: the kernel would keep the EINTR after a first message as the socket's error.
  const int got = recvmmsg(call.fd, messages, n, call.flags | MSG_WAITFORONE, nullptr);
  if (got < 0) return -1;
  size_t total = 0;
  for (int i = 0; i < got && messages[i].msg_len > 0; i++) {
    memmove(call.buffer + total, parts[i].iov_base, messages[i].msg_len);
    total += messages[i].msg_len;
  }
  return static_cast<ssize_t>(total);
}

ssize_t receive_by_splice(Worker* w, const Call& call) {
  if (w->pipe[0] < 0) CHECK_EQ(pipe(w->pipe), 0);
  const ssize_t got = splice(call.fd, nullptr, w->pipe[1], nullptr, call.want < 4096 ? call.want : 4096, 0);
  for (ssize_t at = 0; at < got;) {
    const ssize_t n = read(w->pipe[0], call.buffer + at, static_cast<size_t>(got - at));
    CHECK(n > 0);
    at += n;
  }
  return got;
}

ssize_t receive_call(Worker* w, const Conn* c, const Call& call) {
  struct iovec parts[kParts];
  struct msghdr message = {};
  struct sockaddr_storage from;
  socklen_t length = sizeof from;
  switch (call.op) {
    case kDo_read: return read(call.fd, call.buffer, call.want);
    case kDo_recvfrom: return recvfrom(call.fd, call.buffer, call.want, call.flags, reinterpret_cast<sockaddr*>(&from), &length);
    case kDo_readv: return readv(call.fd, parts, static_cast<int>(cut(w, call.buffer, call.want, parts)));
    case kDo_recvmsg: {
      message.msg_iov = parts;
      message.msg_iovlen = cut(w, call.buffer, call.want, parts);
      const ssize_t n = recvmsg(call.fd, &message, call.flags);
      if (n > 0 && (message.msg_flags & (MSG_TRUNC | MSG_CTRUNC))) broken(w, c, "recvmsg's flags", message.msg_flags, 0);
      return n;
    }
    case kDo_recvmmsg: return receive_messages(w, call);
    case kDo_splice_in: return receive_by_splice(w, call);
    default: return recv(call.fd, call.buffer, call.want, call.flags);
  }
}

// Where in the stream the wrong bytes are from: a hole, a repetition, or none of this stream's at all.
void say_origin(const char* got, size_t n, uint64_t key, uint64_t limit) {
  const size_t length = n < 16 ? n : 16;
  char want[16];
  for (uint64_t at = 0; length >= 8 && at + length <= limit; at++) {
    fill_bytes(want, length, key, at);
    if (memcmp(got, want, length) == 0) fprintf(stderr, "these are the bytes of offset %llu\n", static_cast<unsigned long long>(at));
  }
}

void check_bytes(const Worker* w, const Conn* c, const char* got, size_t n, uint64_t offset) {
  char want[4096];
  const uint64_t key = c->plan.key[1 - c->side_number];
  for (size_t at = 0; at < n;) {
    const size_t step = n - at < sizeof want ? n - at : sizeof want;
    fill_bytes(want, step, key, offset + at);
    if (memcmp(got + at, want, step) != 0) {
      size_t i = 0;
      while (got[at + i] == want[i]) i++;
      fprintf(stderr, "byte %llu (%zu of %zu in this call) is %02x, not %02x\n", static_cast<unsigned long long>(offset + at + i),
              at + i, n, static_cast<unsigned char>(got[at + i]), static_cast<unsigned char>(want[i]));
      say_origin(got + at + i, n - at - i, key, c->plan.send_limit[1 - c->side_number]);
      broken(w, c, "wrong byte at offset", static_cast<long long>(offset + at + i), 0);
    }
    at += step;
  }
  g_totals.bytes_checked.fetch_add(n);
}

// -1 from a data call. kAgain: try later; kDone: the connection was reset, as planned.
Outcome failed(Worker* w, Conn* c, Way way, int error, int flags) {
  if (error == EINTR) {
    if (!w->signals) broken(w, c, "EINTR without a signal", error, 0);
    return Outcome::kProgress;
  }
  if (error == EAGAIN) {
    if (undisturbed(w, c, flags)) broken(w, c, "EAGAIN from a blocking call", error, 0);
    if (w->promised[way]) broken_promise(kAgain, w, c, "EAGAIN although it had just been ready", error, 0);
    c->role[way].drained = true;
    return Outcome::kAgain;
  }
  if ((error == ECONNRESET || error == EPIPE) && (errors_allowed(c) || (way == kSend && c->plan.kind == kShutBoth))) {
    c->saw_error = true;
    end_role(w, c, way);
    return Outcome::kDone;
  }
  broken(w, c, "unexpected errno", error, 0);
}

// What is looked at before a receive: that much it has to give, unless the connection is reset in between (Linux drops the queue then).
size_t look_ahead(Worker* w, Conn* c, size_t want) {
  Role& r = c->role[kReceive];
  size_t promised = 0;
  if (allowed(kDo_fionread) && w->one_in(8)) {
    count(w, kDo_fionread);
    int queued = -1;
    CHECK_EQ(ioctl(r.fd, FIONREAD, &queued), 0);
    if (queued < 0) broken(w, c, "FIONREAD", queued, 0);
    promised = static_cast<size_t>(queued);
  }
  if (allowed(kDo_peek) && w->one_in(8)) {
    count(w, kDo_peek);
    const ssize_t n = recv(r.fd, w->buffer, want, MSG_PEEK | MSG_DONTWAIT);
    if (n > 0) {
      check_bytes(w, c, w->buffer, static_cast<size_t>(n), r.bytes);
      if (static_cast<size_t>(n) < promised && static_cast<size_t>(n) < want)
        broken_promise(kLookedAhead, w, c, "MSG_PEEK gives less than FIONREAD promised", n, static_cast<long long>(promised));
      if (static_cast<size_t>(n) > promised) promised = static_cast<size_t>(n);
    }
    if (n < 0 && errno != EAGAIN && errno != EINTR) {
      if (!errors_allowed(c)) broken(w, c, "MSG_PEEK failed", errno, 0);
      c->saw_error = true;
    }
  }
  return promised < want ? promised : want;
}

bool leaves_unread(const Conn* c) {
  return c->side_number == c->plan.actor && (c->plan.kind == kUnread || c->plan.kind == kExitUnread);
}

// All that was planned has been read. Whoever means to leave unread bytes behind waits until there are some.
Outcome at_limit(Worker* w, Conn* c) {
  Role& r = c->role[kReceive];
  int queued = 1;
  if (leaves_unread(c)) CHECK_EQ(ioctl(r.fd, FIONREAD, &queued), 0);
  if (queued == 0 && w->promised[kReceive]) broken_promise(kAgain, w, c, "FIONREAD is 0 although it had just been readable", 0, 1);
  w->promised[kReceive] = false;
  r.drained = queued == 0;
  if (queued == 0) return Outcome::kAgain;
  end_role(w, c, kReceive);
  return Outcome::kDone;
}

void at_eof(Worker* w, Conn* c) {
  const uint64_t bytes = c->role[kReceive].bytes;
  if (c->plan.exact && bytes != c->plan.send_limit[1 - c->side_number])
    broken(w, c, "end of file after so many bytes", static_cast<long long>(bytes), static_cast<long long>(c->plan.send_limit[1 - c->side_number]));
  if (c->plan.receive_limit[c->side_number] != kToTheEnd) broken(w, c, "end of file while the peer is still sending", 0, 1);
  c->saw_eof = true;
  end_role(w, c, kReceive);
}

void received(Worker* w, Conn* c, const Call& call, size_t n, size_t promised) {
  Role& r = c->role[kReceive];
  if (n > call.want) broken(w, c, "received more than asked for", static_cast<long long>(n), static_cast<long long>(call.want));
  if (n < promised && call.op != kDo_splice_in)
    broken_promise(kLookedAhead, w, c, "received less than FIONREAD or MSG_PEEK promised", static_cast<long long>(n), static_cast<long long>(promised));
  check_bytes(w, c, call.buffer, n, r.bytes);
  r.bytes += n;
  const uint64_t all = c->plan.send_limit[1 - c->side_number];
  if (r.bytes > all) broken(w, c, "received more than was sent", static_cast<long long>(r.bytes.load()), static_cast<long long>(all));
  if ((call.flags & MSG_WAITALL) && n < call.want && undisturbed(w, c, call.flags) && c->plan.exact && r.bytes != all)
    broken(w, c, "MSG_WAITALL gave less", static_cast<long long>(n), static_cast<long long>(call.want));
  if (r.bytes == c->plan.receive_limit[c->side_number] && !leaves_unread(c)) end_role(w, c, kReceive);
}

}  // namespace

void end_role(Worker* w, Conn* c, Way way) {
  Role& r = c->role[way];
  if (r.done) return;
  const bool sent_all = way == kSend && r.bytes == c->plan.send_limit[c->side_number];
  if (sent_all && c->plan.kind == kHalfClose) {
    count(w, kDo_shutdown);
    CHECK_EQ(shutdown(r.fd, SHUT_WR), 0);
  }
  if (sent_all && c->plan.kind == kShutBoth && c->side_number == c->plan.actor) {
    count(w, kDo_shutdown);
    if (shutdown(r.fd, SHUT_RDWR) != 0 && errno != ENOTCONN) broken(w, c, "shutdown", errno, 0);
  }
  r.done = true;
  c->roles_left.fetch_sub(1);
}

Outcome send_some(Worker* w, Conn* c) {
  static const Operation kOps[] = {kDo_write, kDo_send, kDo_sendto, kDo_writev, kDo_sendmsg, kDo_sendmmsg, kDo_sendfile, kDo_splice_out};
  Role& r = c->role[kSend];
  const uint64_t left = c->plan.send_limit[c->side_number] - r.bytes;
  if (left == 0) {
    end_role(w, c, kSend);
    return Outcome::kDone;
  }
  Call call = {pick(w, kOps, kDo_send), r.fd, w->buffer, w->random.size(c->max_chunk), 0};
  if (call.want > left) call.want = left;
  if (allowed(kDo_empty) && w->one_in(200)) {
    count(w, kDo_empty);
    const ssize_t n = send(r.fd, w->buffer, 0, MSG_NOSIGNAL);
    if (n > 0 || (n < 0 && !errors_allowed(c))) broken(w, c, "a send of nothing", n, 0);
    if (n < 0) c->saw_error = true;
  }
  if (has_flags(call.op)) {
    if (w->one_in(2)) call.flags |= MSG_NOSIGNAL;
    if (allowed(kDo_dontwait) && w->one_in(3)) call.flags |= MSG_DONTWAIT, count(w, kDo_dontwait);
    if (allowed(kDo_more) && w->one_in(8)) call.flags |= MSG_MORE, count(w, kDo_more);
  }
  fill_bytes(call.buffer, call.want, c->plan.key[c->side_number], r.bytes);
  count(w, call.op);
  const ssize_t n = send_call(w, c, call);
  const int error = errno;
  Outcome outcome = Outcome::kProgress;
  if (n < 0) {
    outcome = failed(w, c, kSend, error, call.flags);
  } else {
    const auto sent = static_cast<size_t>(n);
    if (sent > call.want || sent == 0) broken(w, c, "sent so many bytes", n, static_cast<long long>(call.want));
    if (sent < call.want && undisturbed(w, c, call.flags) && c->plan.exact && call.op != kDo_sendfile && call.op != kDo_splice_out)
      broken(w, c, "a blocking send took less", n, static_cast<long long>(call.want));
    r.bytes += sent;
    r.drained = false;
    if (sent == left) end_role(w, c, kSend);
  }
  w->promised[kSend] = false;
  return r.done ? Outcome::kDone : outcome;
}

Outcome receive_some(Worker* w, Conn* c) {
  static const Operation kOps[] = {kDo_read, kDo_recv, kDo_recvfrom, kDo_readv, kDo_recvmsg, kDo_recvmmsg, kDo_splice_in};
  Role& r = c->role[kReceive];
  const uint64_t left = c->plan.receive_limit[c->side_number] - r.bytes;
  if (left == 0) return at_limit(w, c);
  Call call = {pick(w, kOps, kDo_recv), r.fd, w->buffer, w->random.size(c->max_chunk), 0};
  if (call.want > left) call.want = left;
  if (allowed(kDo_empty) && w->one_in(200)) {
    count(w, kDo_empty);
    if (read(r.fd, w->buffer, 0) > 0) broken(w, c, "a read of nothing", 1, 0);
  }
  const size_t promised = look_ahead(w, c, call.want);
  if (has_flags(call.op)) {
    if (allowed(kDo_dontwait) && w->one_in(3)) call.flags |= MSG_DONTWAIT, count(w, kDo_dontwait);
    if (allowed(kDo_waitall) && call.op != kDo_recvmmsg && w->one_in(6)) call.flags |= MSG_WAITALL, count(w, kDo_waitall);
  }
  memset(call.buffer + call.want, kCanary, kMargin);
  count(w, call.op);
  const ssize_t n = receive_call(w, c, call);
  const int error = errno;
  for (size_t i = 0; i < kMargin; i++)
    if (call.buffer[call.want + i] != kCanary) broken(w, c, "written behind the buffer, at", static_cast<long long>(i), 0);
  Outcome outcome = Outcome::kProgress;
  if (n < 0) {
    if (promised > 0 && error != EINTR && !errors_allowed(c)) broken_promise(kLookedAhead, w, c, "failed although FIONREAD or MSG_PEEK promised bytes", -error, static_cast<long long>(promised));
    outcome = failed(w, c, kReceive, error, call.flags);
  } else if (n == 0) {
    if (promised > 0 && !errors_allowed(c)) broken_promise(kLookedAhead, w, c, "end of file although FIONREAD or MSG_PEEK promised bytes", 0, static_cast<long long>(promised));
    at_eof(w, c);
  } else {
    received(w, c, call, static_cast<size_t>(n), promised);
    r.drained = false;
  }
  w->promised[kReceive] = false;
  return r.done ? Outcome::kDone : outcome;
}

}  // namespace stress
