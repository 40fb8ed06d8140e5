// SPDX-License-Identifier: MIT
// The smallest io_uring that can be made without a library: one request at a time.
#pragma once

#include <linux/io_uring.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "testlib.h"

namespace testlib {

inline int uring_setup(unsigned entries, struct io_uring_params* params) {
  return static_cast<int>(syscall(SYS_io_uring_setup, entries, params));
}

// Why there is none on this machine, or null.
inline const char* no_uring() {
  struct io_uring_params params = {};
  const int fd = uring_setup(2, &params);
  static char reason[100];
  if (fd >= 0) {
    close(fd);
    return nullptr;
  }
  snprintf(reason, sizeof reason, "io_uring cannot be used here: %s", strerror(errno));
  return reason;
}

class Uring {
 public:
  Uring() {
    struct io_uring_params p = {};
    fd_ = uring_setup(4, &p);
    CHECK(fd_ >= 0);
    const size_t sq_bytes = p.sq_off.array + p.sq_entries * sizeof(unsigned);
    const size_t cq_bytes = p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe);
    char* sq = map(sq_bytes, IORING_OFF_SQ_RING);
    char* cq = map(cq_bytes, IORING_OFF_CQ_RING);
    entries_ = at<struct io_uring_sqe>(map(p.sq_entries * sizeof(struct io_uring_sqe), IORING_OFF_SQES), 0);
    sq_tail_ = at<unsigned>(sq, p.sq_off.tail);
    sq_mask_ = *at<unsigned>(sq, p.sq_off.ring_mask);
    sq_array_ = at<unsigned>(sq, p.sq_off.array);
    cq_head_ = at<unsigned>(cq, p.cq_off.head);
    cq_tail_ = at<unsigned>(cq, p.cq_off.tail);
    cq_mask_ = *at<unsigned>(cq, p.cq_off.ring_mask);
    results_ = at<struct io_uring_cqe>(cq, p.cq_off.cqes);
  }

  // A cleared entry to fill in and submit.
  struct io_uring_sqe* entry(uint8_t operation, int fd) {
    struct io_uring_sqe* e = &entries_[*sq_tail_ & sq_mask_];
    memset(e, 0, sizeof *e);
    e->opcode = operation;
    e->fd = fd;
    return e;
  }

  void submit() {
    const unsigned tail = *sq_tail_;
    sq_array_[tail & sq_mask_] = tail & sq_mask_;
    __atomic_store_n(sq_tail_, tail + 1, __ATOMIC_RELEASE);
    CHECK_EQ(enter(1, 0), 1);
  }

  // The result of the oldest request: what the system call would have returned, or -errno.
  int result() {
    const unsigned head = *cq_head_;
    while (__atomic_load_n(cq_tail_, __ATOMIC_ACQUIRE) == head) CHECK(enter(0, 1) >= 0 || errno == EINTR);
    const int value = results_[head & cq_mask_].res;
    __atomic_store_n(cq_head_, head + 1, __ATOMIC_RELEASE);
    return value;
  }

  // read, write, recv or send.
  int transfer(uint8_t operation, int fd, void* buffer, size_t length) {
    struct io_uring_sqe* e = entry(operation, fd);
    e->addr = reinterpret_cast<uintptr_t>(buffer);
    e->len = static_cast<unsigned>(length);
    submit();
    return result();
  }

  int simple(uint8_t operation, int fd) {
    entry(operation, fd);
    submit();
    return result();
  }

 private:
  template <typename T>
  static T* at(char* base, size_t offset) {
    return reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(base) + offset);
  }
  char* map(size_t bytes, off_t what) const {
    void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd_, what);
    CHECK(p != MAP_FAILED);
    return static_cast<char*>(p);
  }
  long enter(unsigned to_submit, unsigned to_wait) const {
    return syscall(SYS_io_uring_enter, fd_, to_submit, to_wait, to_wait > 0 ? IORING_ENTER_GETEVENTS : 0, nullptr, 0);
  }

  int fd_;
  unsigned *sq_tail_, *sq_array_, *cq_head_, *cq_tail_;
  unsigned sq_mask_, cq_mask_;
  struct io_uring_sqe* entries_;
  struct io_uring_cqe* results_;
};

}  // namespace testlib
