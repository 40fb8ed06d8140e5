// SPDX-License-Identifier: MIT
// Segments, the guarded range and the gate.
#include <catch2/catch.hpp>
#include <csetjmp>
#include <csignal>
#include <memory>

#include "preload/real.h"
#include "shm/guard.h"
#include "shm/layout.h"
#include "shm/pkey.h"
#include "shm/segment.h"

using namespace mpklink;

namespace {

const SystemCalls& sys() { return real().sys; }

sigjmp_buf g_jump;
void on_fault(int) { siglongjmp(g_jump, 1); }

// Whether a write to `at` faults.
bool faults(unsigned char* at) {
  struct sigaction action = {}, old_segv = {}, old_bus = {};
  action.sa_handler = on_fault;
  sigaction(SIGSEGV, &action, &old_segv);
  sigaction(SIGBUS, &action, &old_bus);
  const bool faulted = sigsetjmp(g_jump, 1) != 0;
  if (!faulted) *const_cast<volatile unsigned char*>(at) = 1;
  sigaction(SIGSEGV, &old_segv, nullptr);
  sigaction(SIGBUS, &old_bus, nullptr);
  return faulted;
}

}  // namespace

TEST_CASE("segment: sealed, sized, and recognised", "[segment]") {
  const int fd = make_segment(sys(), "test", 3 * kPage);
  REQUIRE(fd >= 0);
  REQUIRE(segment_is_sound(sys(), fd, 3 * kPage));
  REQUIRE_FALSE(segment_is_sound(sys(), fd, 2 * kPage));
  REQUIRE(ftruncate(fd, kPage) != 0);
  REQUIRE(fcntl(fd, F_GETFD) == FD_CLOEXEC);
  close(fd);
}

TEST_CASE("segment: secret memory has its size for good, and is asked for by name", "[segment]") {
  const int fd = make_segment(sys(), "", 2 * kPage, Backing::kSecret);
  if (fd < 0) {
    WARN("no memfd_secret here: errno " << errno);
    REQUIRE((errno == ENOSYS || errno == EPERM || errno == EINVAL));
    return;
  }
  REQUIRE(segment_is_sound(sys(), fd, 2 * kPage, Backing::kSecret));
  REQUIRE(segment_is_sound(sys(), fd, 2 * kPage));
  REQUIRE_FALSE(segment_is_sound(sys(), fd, kPage, Backing::kSecret));
  REQUIRE(ftruncate(fd, kPage) != 0);
  REQUIRE(ftruncate(fd, 3 * kPage) != 0);
  REQUIRE(fcntl(fd, F_GETFD) == FD_CLOEXEC);
  close(fd);
  const int ordinary = make_segment(sys(), "test", kPage);
  REQUIRE_FALSE(segment_is_sound(sys(), ordinary, kPage, Backing::kSecret));
  close(ordinary);
}

TEST_CASE("segment: what could shrink under us is refused", "[segment]") {
  const int fd = memfd_create("unsealed", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  REQUIRE(ftruncate(fd, 2 * kPage) == 0);
  REQUIRE_FALSE(segment_is_sound(sys(), fd, 2 * kPage));
  close(fd);
  int ends[2];
  REQUIRE(pipe(ends) == 0);
  REQUIRE_FALSE(segment_is_sound(sys(), ends[0], 2 * kPage));
  close(ends[0]);
  close(ends[1]);
}

TEST_CASE("guarded range: slots, guard pages, and what touches it", "[guard]") {
  auto guard = std::make_unique<Guard>();
  GuardedRange& range = guard->range();
  REQUIRE_FALSE(range.touches(&guard, 1));
  REQUIRE(range.reserve(sys(), 4 * kPage, 64));
  const int fd = make_segment(sys(), "test", 2 * kPage);
  unsigned char* first = guard->map(sys(), kPage, fd, 2 * kPage);
  unsigned char* second = guard->map(sys(), kPage, fd, 2 * kPage);
  REQUIRE(first != nullptr);
  REQUIRE(second != nullptr);
  REQUIRE_FALSE(faults(first));
  REQUIRE_FALSE(faults(first + 3 * kPage - 1));
  REQUIRE(faults(first + 3 * kPage));
  REQUIRE(faults(first - 1));
  REQUIRE(range.touches(first, 1));
  REQUIRE_FALSE(range.touches(first, 0));
  REQUIRE(range.touches(first - 100000, 200000));
  REQUIRE(range.touches(first, ~std::size_t{0}));
  REQUIRE_FALSE(range.touches(&fd, sizeof fd));
  // Both slots show the segment, each with private pages of its own.
  first[kPage] = 77;
  first[0] = 1;
  second[0] = 2;
  REQUIRE(second[kPage] == 77);
  REQUIRE(first[0] == 1);
  guard->unmap(sys(), first);
  REQUIRE(faults(first));
  REQUIRE(guard->map(sys(), kPage, fd, 2 * kPage) == first);
  REQUIRE(guard->map(sys(), kPage, fd, 16 * kPage) == nullptr);
  close(fd);
}

TEST_CASE("guarded range: a slot that could not be unmapped is free again after the next map", "[guard]") {
  static bool no_mapping_left = false;
  SystemCalls calls = sys();
  calls.mmap = [](void* at, size_t bytes, int prot, int flags, int fd, off_t offset) {
    return no_mapping_left ? MAP_FAILED : sys().mmap(at, bytes, prot, flags, fd, offset);
  };
  constexpr std::size_t kCount = 16;
  auto range = std::make_unique<GuardedRange>();
  REQUIRE(range->reserve(calls, kPage, kCount));
  const int fd = make_segment(sys(), "test", kPage);
  unsigned char* first = range->map(calls, 0, fd, kPage);
  REQUIRE(first != nullptr);
  no_mapping_left = true;
  range->unmap(calls, first);
  REQUIRE(range->map(calls, 0, fd, kPage) == nullptr);
  no_mapping_left = false;
  for (std::size_t i = 0; i < kCount; ++i) REQUIRE(range->map(calls, 0, fd, kPage) != nullptr);
  REQUIRE(range->map(calls, 0, fd, kPage) == nullptr);
  close(fd);
}

TEST_CASE("guarded range: reservation shrinks to what the process may have", "[guard]") {
  static int refusals;
  refusals = 3;
  SystemCalls calls = sys();
  calls.mmap = [](void* at, size_t n, int prot, int flags, int fd, off_t offset) -> void* {
    if (refusals-- > 0) return MAP_FAILED;
    return ::mmap(at, n, prot, flags, fd, offset);
  };
  auto range = std::make_unique<GuardedRange>();
  REQUIRE(range->reserve(calls, 4 * kPage, 1024));
  refusals = 1000;
  auto none = std::make_unique<GuardedRange>();
  REQUIRE_FALSE(none->reserve(calls, 4 * kPage, 1024));
}

TEST_CASE("gate: in mprotect mode memory is closed outside of gates", "[guard]") {
  auto guard = std::make_unique<Guard>();
  REQUIRE(guard->range().reserve(sys(), 4 * kPage, 64));
  guard->set_mode(GuardMode::kMprotect, -1);
  const int fd = make_segment(sys(), "test", 2 * kPage);
  unsigned char* at = guard->map(sys(), kPage, fd, 2 * kPage);
  REQUIRE(at != nullptr);
  REQUIRE(faults(at));
  {
    const OpenGate gate(*guard, sys());
    REQUIRE_FALSE(faults(at));
    unsigned char* while_open = guard->map(sys(), 0, fd, 2 * kPage);
    REQUIRE_FALSE(faults(while_open));
    guard->unmap(sys(), while_open);
  }
  REQUIRE(faults(at));
  REQUIRE(guard->gates() == 1);
  close(fd);
}

TEST_CASE("pkey: arithmetic of PKRU and sound kernels", "[pkey]") {
  REQUIRE(pkru_mask(1) == 0xc);
  REQUIRE(pkru_closed_bits(1) == 0x4);
  REQUIRE(pkru_mask(15) == 0xc0000000u);
  REQUIRE((0x55555554u & pkru_mask(15)) == pkru_closed_bits(15));
  const auto why = [](bool ospke, bool amd, const char* release) {
    const char* reason = pkey_unsound(ospke, amd, release);
    return std::string(reason == nullptr ? "sound" : reason);
  };
  REQUIRE(why(false, false, "6.1.0") == "no-pku");
  for (const char* release : {"6.1.0-18-amd64", "5.13.0", "5.13", "5.4.182", "5.4.299-generic", "5.10.103", "7.0"}) {
    INFO(release);
    REQUIRE(why(true, false, release) == "sound");
    REQUIRE(why(true, true, release) == "sound");
  }
  for (const char* release : {"5.12.9", "5.4.181", "5.10.102", "5.11.200", "4.19", "nonsense", ""}) {
    INFO(release);
    REQUIRE(why(true, false, release) == "old-kernel");
  }
  for (const char* release : {"6.12", "6.12.0", "6.12.9-cloud-amd64"}) {
    INFO(release);
    REQUIRE(why(true, true, release) == "amd-signal");
    REQUIRE(why(true, false, release) == "sound");
  }
  REQUIRE(why(true, true, "6.12.10") == "sound");
  REQUIRE(why(true, true, "6.13.0") == "sound");
}

TEST_CASE("pkey: absent is one answer, however the kernel says it", "[pkey]") {
  const int key = allocate_pkey();
  REQUIRE((key == -1 || (key > 0 && key < 16)));
  if (!cpu_has_ospke()) REQUIRE(key == -1);
}
