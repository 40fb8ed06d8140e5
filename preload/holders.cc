// SPDX-License-Identifier: MIT
#include "preload/holders.h"

#include <sys/mman.h>

#include "preload/real.h"

namespace mpklink {
namespace {

constexpr std::uint32_t kWords = 16384;

Atomic<std::uint32_t>* g_words;  // 0: free
std::uint32_t g_next;            // where to look first

// Only within a fork, which the table locks serialise.
Atomic<std::uint32_t>* take_word() {
  if (g_words == nullptr) {
    void* at = real().sys.mmap(nullptr, kWords * sizeof *g_words, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) return nullptr;
    g_words = static_cast<Atomic<std::uint32_t>*>(at);
  }
  for (std::uint32_t i = 0; i < kWords; ++i) {
    Atomic<std::uint32_t>& word = g_words[g_next++ % kWords];
    std::uint32_t free = 0;
    if (word.compare_exchange(free, 1)) return &word;
  }
  return nullptr;
}

}  // namespace

bool add_holder(Stream* s) {
  if (s->holders == nullptr) s->holders = take_word();
  if (s->holders == nullptr) return false;
  s->holders->fetch_add(1);
  return true;
}

void drop_holder(Stream* s) {
  if (s->holders != nullptr) s->holders->fetch_add(~std::uint32_t{0});
  s->holders = nullptr;
}

bool held_by_others(const Stream* s) {
  return s->holders != nullptr && s->holders->load_acquire() > 1;  // SYNC: holders
}

}  // namespace mpklink
