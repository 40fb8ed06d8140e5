// SPDX-License-Identifier: MIT
#include "connection.h"

#include <sys/socket.h>

#include <cerrno>

#include "serve.h"

namespace bench {
namespace {

/// One for all connections: it never changes. Never destroyed either: exit() does not wait for the threads that use it.
const StreamBytes& shared_stream(std::size_t max_piece) {
  static const StreamBytes& stream = *new StreamBytes(max_piece);
  return stream;
}

bool must_wait(ssize_t n) { return n < 0 && (errno == EAGAIN || errno == EINTR); }

}  // namespace

Connection::Connection(Fd fd, const ServeOptions& options)
    : fd_(std::move(fd)), kind_(options.kind), wanted_(options.kind == Kind::kSource ? POLLOUT : POLLIN), buffer_(options.bytes) {
  if (kind_ != Kind::kEcho) stream_ = &shared_stream(options.bytes);
}

bool Connection::advance() {
  switch (kind_) {
    case Kind::kEcho:
      return echo();
    case Kind::kSink:
      return sink();
    case Kind::kSource:
      return source();
  }
  return false;
}

// A client may close, or be killed, at any time: the errors of its connection are its end and no more.
bool Connection::echo() {
  if (wanted_ == POLLOUT) return answer();
  const ssize_t n = recv(fd(), buffer_.data() + received_, buffer_.size() - received_, 0);
  if (must_wait(n)) return true;
  if (n <= 0) return false;
  received_ += static_cast<std::size_t>(n);
  return received_ < buffer_.size() || answer();
}

bool Connection::answer() {
  const ssize_t n = send(fd(), buffer_.data() + sent_, buffer_.size() - sent_, 0);
  if (n < 0 && !must_wait(n)) return false;
  if (n > 0) sent_ += static_cast<std::size_t>(n);
  wanted_ = sent_ < buffer_.size() ? POLLOUT : POLLIN;
  if (wanted_ == POLLIN) received_ = sent_ = 0;
  return true;
}

bool Connection::sink() {
  const ssize_t n = recv(fd(), buffer_.data(), buffer_.size(), 0);
  if (must_wait(n)) return true;
  if (n < 0) return false;
  if (n == 0) {
    const unsigned char verdict = content_ ? kSinkContent : kSinkMalcontent;
    send(fd(), &verdict, 1, 0);  // has room: nothing else was sent; a client that is gone does not want it
    return false;
  }
  content_ = content_ && stream_->is_right(offset_, buffer_.data(), static_cast<std::size_t>(n));
  offset_ += static_cast<std::uint64_t>(n);
  return true;
}

bool Connection::source() {
  const ssize_t n = send(fd(), stream_->at(offset_), buffer_.size(), 0);
  if (n > 0) offset_ += static_cast<std::uint64_t>(n);
  return n > 0 || must_wait(n);
}

}  // namespace bench
