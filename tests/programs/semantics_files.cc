// SPDX-License-Identifier: MIT
// Calls between a TCP stream and files or pipes: sendfile, splice, tee, vmsplice, pread and so on. `NAME list` prints the cases.
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/uio.h>

#include "peer.h"

using namespace testlib;

namespace {

char g_buffer[1 << 16];

// A file with `bytes` of the pattern that the Peer expects next from us.
int make_file(const Peer& peer, size_t bytes) {
  const int file = memfd_create("file", MFD_CLOEXEC);
  CHECK(file >= 0);
  CHECK(bytes <= sizeof g_buffer);
  peer.prepare(g_buffer, bytes);
  CHECK_EQ(write(file, g_buffer, bytes), bytes);
  CHECK_EQ(lseek(file, 0, SEEK_SET), 0);
  return file;
}

struct Pipe {
  int ends[2];
  Pipe() { CHECK_EQ(pipe(ends), 0); }
  ~Pipe() {
    close(ends[0]);
    close(ends[1]);
  }
  Pipe(const Pipe&) = delete;
  Pipe& operator=(const Pipe&) = delete;
  int in() const { return ends[1]; }
  int out() const { return ends[0]; }
};

// All `bytes` go from one descriptor to the other.
void splice_all(int from, int to, size_t bytes) {
  while (bytes > 0) {
    const ssize_t n = splice(from, nullptr, to, nullptr, bytes, 0);
    CHECK(n > 0);
    bytes -= static_cast<size_t>(n);
  }
}

// ---- sendfile ---------------------------------------------------------------------------------------------------------

void sendfile_counts_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  const int file = make_file(peer, 1000);
  off_t offset = 5;
  CHECK_EQ(sendfile(fd, file, &offset, 0), 0);
  CHECK_EQ(offset, 5);
  CHECK_EQ(sendfile(fd, file, nullptr, 0), 0);
  offset = 1000;
  CHECK_EQ(sendfile(fd, file, &offset, 100), 0);
  offset = 5000;  // far behind the end
  CHECK_EQ(sendfile(fd, file, &offset, 100), 0);
  CHECK_EQ(offset, 5000);
  offset = -1;
  CHECK_ERRNO(sendfile(fd, file, &offset, 100), EINVAL);
  // A count without end sends what there is.
  CHECK_EQ(sendfile(fd, file, nullptr, SIZE_MAX >> 1), 1000);
  CHECK_EQ(lseek(file, 0, SEEK_CUR), 1000);
  peer.wrote(1000);
  peer.drained();
  peer.prepare(g_buffer, 300);
  CHECK_EQ(pwrite(file, g_buffer, 300, 0), 300);
  CHECK_EQ(ftruncate(file, 300), 0);
  offset = 0;
  CHECK_EQ(sendfile(fd, file, &offset, SIZE_MAX >> 1), 300);
  CHECK_EQ(offset, 300);
  peer.wrote(300);
  close(file);
  peer.finish();
}

// Shortened between two calls.
void sendfile_truncated_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  const int file = make_file(peer, 2000);
  CHECK_EQ(sendfile(fd, file, nullptr, 1000), 1000);
  peer.wrote(1000);
  CHECK_EQ(ftruncate(file, 1200), 0);
  CHECK_EQ(sendfile(fd, file, nullptr, 1000), 200);
  peer.wrote(200);
  peer.drained();  // pages that are still on their way would change
  CHECK_EQ(ftruncate(file, 500), 0);
  CHECK_EQ(sendfile(fd, file, nullptr, 1000), 0);
  CHECK_EQ(lseek(file, 0, SEEK_CUR), 1200);
  close(file);
  peer.finish();
}

void sendfile_sources_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  const Pipe pipes;
  CHECK_ERRNO(sendfile(fd, fd, nullptr, 10), EINVAL);         // from a stream
  off_t offset = 0;
  CHECK_ERRNO(sendfile(fd, pipes.out(), &offset, 10), ESPIPE);
  CHECK_ERRNO(sendfile(fd, pipes.in(), nullptr, 10), EBADF);  // not open for reading
  CHECK_ERRNO(sendfile(fd, 4000, nullptr, 10), EBADF);
  CHECK_ERRNO(sendfile(4000, fd, nullptr, 10), EBADF);
  const int directory = open("/", O_RDONLY | O_DIRECTORY);
  CHECK_ERRNO(sendfile(fd, directory, nullptr, 10), EINVAL);
  close(directory);
  peer.finish();
}

// From a pipe: Linux says EINVAL before 5.10 or so and copies since; either way no byte is lost or made up.
void sendfile_pipe_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  const Pipe pipes;
  peer.prepare(g_buffer, 100);
  CHECK_EQ(write(pipes.in(), g_buffer, 100), 100);
  errno = 0;
  const ssize_t n = sendfile(fd, pipes.out(), nullptr, 100);
  CHECK(n == 100 || (n == -1 && errno == EINVAL));
  if (n == 100) peer.wrote(100);
  fprintf(stderr, "sendfile from a pipe: %zd\n", n);
  peer.finish();
}

// To a full non-blocking stream: a part, then EAGAIN; the offset tells exactly how much.
void sendfile_nonblock_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  peer.fill();
  const int file = make_file(peer, sizeof g_buffer);
  set_nonblocking(fd);
  off_t offset = 0, sent = 0;
  ssize_t n;
  while ((n = sendfile(fd, file, &offset, sizeof g_buffer)) > 0) {  // room that TCP made by itself
    sent += n;
    CHECK_EQ(offset, sent);
  }
  CHECK(n == 0 || errno == EAGAIN);
  peer.wrote(static_cast<size_t>(sent));
  peer.drained();
  peer.await_events(POLLOUT);
  if (offset < static_cast<off_t>(sizeof g_buffer)) {
    n = sendfile(fd, file, &offset, sizeof g_buffer);
    CHECK(n > 0);
    CHECK_EQ(offset, sent + n);
    peer.wrote(static_cast<size_t>(n));
  }
  close(file);
  set_nonblocking(fd, false);
  peer.finish();
}

// A blocking one waits until everything has gone.
void sendfile_blocks_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  const uint64_t filled = peer.fill();
  const int file = make_file(peer, sizeof g_buffer);
  peer.when_asleep(Do::kDrain, filled);
  peer.when_asleep(Do::kDrain, sizeof g_buffer);
  CHECK_EQ(sendfile(fd, file, nullptr, sizeof g_buffer), sizeof g_buffer);
  peer.settle();
  CHECK_EQ(lseek(file, 0, SEEK_CUR), sizeof g_buffer);
  close(file);
  close(fd);
}

// ---- splice -----------------------------------------------------------------------------------------------------------

void splice_out_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  const Pipe pipes;
  for (int i = 0; i < 5; i++) {
    peer.prepare(g_buffer, 3000);
    CHECK_EQ(write(pipes.in(), g_buffer, 3000), 3000);
    splice_all(pipes.out(), fd, 3000);
    peer.wrote(3000);
    peer.put(100);  // and an ordinary send between
    peer.drained();
  }
  set_nonblocking(pipes.out());
  CHECK_ERRNO(splice(pipes.out(), nullptr, fd, nullptr, 100, SPLICE_F_NONBLOCK), EAGAIN);  // empty pipe
  CHECK_EQ(splice(pipes.out(), nullptr, fd, nullptr, 0, 0), 0);
  off_t offset = 0;
  CHECK_ERRNO(splice(pipes.out(), nullptr, fd, &offset, 100, 0), EINVAL);
  CHECK_ERRNO(splice(fd, nullptr, fd, nullptr, 100, 0), EINVAL);  // one end has to be a pipe
  peer.finish();
}

void splice_in_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  const Pipe pipes;
  set_nonblocking(fd);
  CHECK_ERRNO(splice(fd, nullptr, pipes.in(), nullptr, 100, SPLICE_F_NONBLOCK), EAGAIN);
  set_nonblocking(fd, false);
  for (int i = 0; i < 5; i++) {
    peer.arrive(3000);
    peer.take(100);  // an ordinary read first
    splice_all(fd, pipes.in(), 2900);
    CHECK_EQ(read(pipes.out(), g_buffer, 4000), 2900);
    peer.took(g_buffer, 2900);
  }
  peer.when_asleep(Do::kSend, 70);  // a blocking one sleeps
  CHECK_EQ(splice(fd, nullptr, pipes.in(), nullptr, 100, 0), 70);
  CHECK_EQ(read(pipes.out(), g_buffer, 100), 70);
  peer.took(g_buffer, 70);
  peer.settle();
  peer.arrive(10);
  peer.now(Do::kHalfClose);
  splice_all(fd, pipes.in(), 10);
  CHECK_EQ(splice(fd, nullptr, pipes.in(), nullptr, 100, 0), 0);  // end of file
  CHECK_EQ(read(pipes.out(), g_buffer, 100), 10);
  peer.took(g_buffer, 10);
  expect_eof(fd);
  close(fd);
}

// A proxy: stream to pipe to the same stream's other direction, and file to pipe to stream.
void splice_proxy_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  const Pipe pipes;
  const int file = make_file(peer, 40000);
  for (size_t done = 0; done < 40000;) {
    const ssize_t n = splice(file, nullptr, pipes.in(), nullptr, 40000 - done, SPLICE_F_MORE | SPLICE_F_MOVE);
    CHECK(n > 0);
    splice_all(pipes.out(), fd, static_cast<size_t>(n));
    done += static_cast<size_t>(n);
  }
  peer.wrote(40000);
  peer.drained();
  close(file);
  const int copy = memfd_create("copy", MFD_CLOEXEC);
  CHECK(copy >= 0);
  peer.arrive(5000);
  for (size_t done = 0; done < 5000;) {
    const ssize_t n = splice(fd, nullptr, pipes.in(), nullptr, 5000 - done, 0);
    CHECK(n > 0);
    splice_all(pipes.out(), copy, static_cast<size_t>(n));
    done += static_cast<size_t>(n);
  }
  CHECK_EQ(pread(copy, g_buffer, 6000, 0), 5000);
  peer.took(g_buffer, 5000);
  close(copy);
  peer.finish();
}

// To a stream that is full: EAGAIN or a part with SPLICE_F_NONBLOCK on a non-blocking stream.
void splice_full_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  const Pipe pipes;
  peer.fill();
  set_nonblocking(fd);
  peer.prepare(g_buffer, 30000);
  CHECK_EQ(write(pipes.in(), g_buffer, 30000), 30000);
  size_t moved = 0;
  ssize_t n = 0;
  while (moved < 30000 && (n = splice(pipes.out(), nullptr, fd, nullptr, 30000 - moved, SPLICE_F_NONBLOCK)) > 0)
    moved += static_cast<size_t>(n);
  CHECK(moved == 30000 || errno == EAGAIN);
  int left = -1;
  CHECK_EQ(ioctl(pipes.out(), FIONREAD, &left), 0);
  CHECK_EQ(static_cast<size_t>(left), 30000 - moved);
  peer.wrote(moved);
  peer.drained();
  set_nonblocking(fd, false);
  splice_all(pipes.out(), fd, 30000 - moved);
  peer.wrote(30000 - moved);
  peer.drained();
  peer.finish();
}

void tee_vmsplice_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  const Pipe first, second;
  // tee: what goes to the stream also stays in another pipe.
  peer.prepare(g_buffer, 1000);
  CHECK_EQ(write(first.in(), g_buffer, 1000), 1000);
  CHECK_EQ(tee(first.out(), second.in(), 1000, 0), 1000);
  splice_all(first.out(), fd, 1000);
  peer.wrote(1000);
  peer.drained();
  char copy[1000];
  CHECK_EQ(read(second.out(), copy, 1000), 1000);
  CHECK_EQ(memcmp(copy, g_buffer, 1000), 0);
  CHECK_ERRNO(tee(fd, second.in(), 10, 0), EINVAL);
  // vmsplice: pages of ours into the pipe, then to the stream.
  peer.prepare(g_buffer, 8192);
  const struct iovec iov = {g_buffer, 8192};
  CHECK_EQ(vmsplice(first.in(), &iov, 1, 0), 8192);
  splice_all(first.out(), fd, 8192);
  peer.wrote(8192);
  peer.drained();
  CHECK_ERRNO(vmsplice(fd, &iov, 1, 0), EBADF);
  peer.finish();
}

// ---- calls for seekable files -----------------------------------------------------------------------------------------

void seekable_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  const struct iovec iov = {g_buffer, 10};
  peer.arrive(10);
  CHECK_ERRNO(pread(fd, g_buffer, 10, 0), ESPIPE);
  CHECK_ERRNO(pwrite(fd, g_buffer, 10, 0), ESPIPE);
  CHECK_ERRNO(preadv(fd, &iov, 1, 0), ESPIPE);
  CHECK_ERRNO(pwritev(fd, &iov, 1, 0), ESPIPE);
  CHECK_ERRNO(preadv2(fd, &iov, 1, 0, 0), ESPIPE);
  CHECK_ERRNO(pwritev2(fd, &iov, 1, 0, 0), ESPIPE);
  CHECK_ERRNO(lseek(fd, 0, SEEK_SET), ESPIPE);
  CHECK_ERRNO(ftruncate(fd, 0), EINVAL);
  CHECK_ERRNO(fsync(fd), EINVAL);
  const int file = make_file(peer, 10);
  CHECK_ERRNO(copy_file_range(file, nullptr, fd, nullptr, 10, 0), EINVAL);
  CHECK_ERRNO(copy_file_range(fd, nullptr, file, nullptr, 10, 0), EINVAL);
  close(file);
  peer.take(10);
  peer.finish();
}

// With offset -1 they are readv and writev.
void readv2_server(int fd, const Sync& sync) {
  Peer peer(fd, sync);
  const struct iovec iov[] = {{g_buffer, 10}, {g_buffer + 10, 90}};
  peer.arrive(50);
  CHECK_EQ(preadv2(fd, iov, 2, -1, 0), 50);
  peer.took(g_buffer, 50);
  CHECK_ERRNO(preadv2(fd, iov, 2, -1, RWF_NOWAIT), EAGAIN);
  peer.when_asleep(Do::kSend, 60);
  CHECK_EQ(preadv2(fd, iov, 2, -1, 0), 60);
  peer.took(g_buffer, 60);
  peer.settle();
  peer.arrive(20);
  CHECK_EQ(preadv2(fd, iov, 2, -1, RWF_NOWAIT), 20);
  peer.took(g_buffer, 20);
  for (int i = 0; i < 3; i++) {
    peer.prepare(g_buffer, 100);
    CHECK_EQ(pwritev2(fd, iov, 2, -1, 0), 100);
    peer.wrote(100);
    peer.put(10);
  }
  peer.drained();
  CHECK_ERRNO(preadv2(fd, iov, 2, -1, hidden(1 << 30)), EOPNOTSUPP);
  peer.finish();
}

const Case kCases[] = {
    {"sendfile_counts", sendfile_counts_server, obedient_client},
    {"sendfile_truncated", sendfile_truncated_server, obedient_client},
    {"sendfile_sources", sendfile_sources_server, obedient_client},
    {"sendfile_pipe", sendfile_pipe_server, obedient_client},
    {"sendfile_nonblock", sendfile_nonblock_server, obedient_client},
    {"sendfile_blocks", sendfile_blocks_server, obedient_client},
    {"splice_out", splice_out_server, obedient_client},
    {"splice_in", splice_in_server, obedient_client},
    {"splice_proxy", splice_proxy_server, obedient_client},
    {"splice_full", splice_full_server, obedient_client},
    {"tee_vmsplice", tee_vmsplice_server, obedient_client},
    {"seekable", seekable_server, obedient_client},
    {"readv2", readv2_server, obedient_client},
};

}  // namespace

int main(int argc, char** argv) { return case_main(argc, argv, kCases); }
