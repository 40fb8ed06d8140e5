// SPDX-License-Identifier: MIT
// Calls whose bytes libc moves itself, where we do not see them: such a stream belongs on TCP. glibc's aio_read and aio_write use read and
// write when the kernel refuses pread on a socket (ESPIPE, glibc 2.36 aio_misc.c), so they work on streams.
#include "preload/export.h"
#include "preload/hook_scope.h"
#include "preload/revoke.h"

using namespace mpklink;

namespace {

void give_to_kernel(int fd) {
  if (Stream* s = stream_of(fd)) revoke(fd, s, Reason::kAio);
}

template <class Block>
void give_listed(Block* const* blocks, int count) {
  for (int i = 0; i < count; ++i) {
    if (blocks[i] != nullptr) give_to_kernel(blocks[i]->aio_fildes);
  }
}

}  // namespace

extern "C" {

int mpklink_aio_read(struct aiocb* block) noexcept {
  give_to_kernel(block->aio_fildes);
  return real().aio_read(block);
}
int mpklink_aio_read64(struct aiocb64* block) noexcept {
  give_to_kernel(block->aio_fildes);
  return real().aio_read64(block);
}
int mpklink_aio_write(struct aiocb* block) noexcept {
  give_to_kernel(block->aio_fildes);
  return real().aio_write(block);
}
int mpklink_aio_write64(struct aiocb64* block) noexcept {
  give_to_kernel(block->aio_fildes);
  return real().aio_write64(block);
}
int mpklink_lio_listio(int mode, struct aiocb* const* blocks, int count, struct sigevent* event) noexcept {
  give_listed(blocks, count);
  return real().lio_listio(mode, blocks, count, event);
}
int mpklink_lio_listio64(int mode, struct aiocb64* const* blocks, int count, struct sigevent* event) noexcept {
  give_listed(blocks, count);
  return real().lio_listio64(mode, blocks, count, event);
}
void mpklink_backtrace_symbols_fd(void* const* frames, int count, int fd) noexcept {
  give_to_kernel(fd);
  real().backtrace_symbols_fd(frames, count, fd);
}

}  // extern "C"

MPKLINK_EXPORT(aio_read)
MPKLINK_EXPORT(aio_read64)
MPKLINK_EXPORT(aio_write)
MPKLINK_EXPORT(aio_write64)
MPKLINK_EXPORT(lio_listio)
MPKLINK_EXPORT(lio_listio64)
MPKLINK_EXPORT(backtrace_symbols_fd)
MPKLINK_EXPORT_AS(__backtrace_symbols_fd, backtrace_symbols_fd)
