// SPDX-License-Identifier: MIT
#include "shm/ready.h"

#include <catch2/catch.hpp>
#include <memory>
#include <set>

using namespace mpklink;

TEST_CASE("ready: bits come back once, each", "[ready]") {
  auto map = std::make_unique<ReadyBitmap>();
  const std::set<std::uint32_t> slots = {0, 1, 63, 64, 4095, 4096, 8191, kSlots - 1};
  for (const std::uint32_t slot : slots) mark_ready(map.get(), slot);
  for (const std::uint32_t slot : slots) mark_ready(map.get(), slot);
  REQUIRE(anything_ready(*map));
  std::set<std::uint32_t> seen;
  take_ready(map.get(), [&](std::uint32_t slot) { REQUIRE(seen.insert(slot).second); });
  REQUIRE(seen == slots);
  REQUIRE_FALSE(anything_ready(*map));
}

TEST_CASE("ready: a bit whose setter died before the summary is found by the next sender", "[ready]") {
  auto map = std::make_unique<ReadyBitmap>();
  map->leaf[2].fetch_or(1u << 5);
  REQUIRE_FALSE(anything_ready(*map));
  mark_ready(map.get(), 2 * 64 + 5);
  REQUIRE(anything_ready(*map));
}

TEST_CASE("ready: one sender gets the armed word", "[ready]") {
  ArmedLine line;
  REQUIRE_FALSE(take_armed(&line));
  arm(&line);
  REQUIRE(take_armed(&line));
  REQUIRE_FALSE(take_armed(&line));
}

TEST_CASE("ready: four waiters, no fifth, no duplicates", "[ready]") {
  Atomic<std::uint64_t> word;
  for (const std::uint32_t id : {5u, 1023u, 0u, 64u}) REQUIRE(add_waiter(&word, id));
  REQUIRE(add_waiter(&word, 1023));
  REQUIRE_FALSE(add_waiter(&word, 7));
  remove_waiter(&word, 0);
  REQUIRE(add_waiter(&word, 7));
  std::set<std::uint32_t> ids;
  for (unsigned i = 0; i < kWaitersMax; ++i) ids.insert(waiter_at(word.load_relaxed(), i));
  REQUIRE(ids == std::set<std::uint32_t>{6, 1024, 8, 65});
  for (const std::uint32_t id : {5u, 1023u, 7u, 64u}) remove_waiter(&word, id);
  REQUIRE(word.load_relaxed() == 0);
}
