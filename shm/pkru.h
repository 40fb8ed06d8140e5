// SPDX-License-Identifier: MIT
// RDPKRU/WRPKRU and the arithmetic of PKRU's bits: two bits per key, AD (access disable) and WD (write disable); Intel SDM
// volume 2 "WRPKRU", pkeys(7). The only file with inline assembly for it; arm64's POR_EL0 would go beside it.
#pragma once
#include <cstdint>

namespace mpklink {

constexpr std::uint32_t pkru_mask(int key) { return std::uint32_t{3} << (2 * key); }
constexpr std::uint32_t pkru_closed_bits(int key) { return std::uint32_t{1} << (2 * key); }  // AD set, WD clear

inline std::uint32_t read_pkru() {
  std::uint32_t value = 0;
  std::uint32_t edx = 0;
  asm volatile("rdpkru" : "=a"(value), "=d"(edx) : "c"(0));
  return value;
}

// The "memory" clobber is what keeps loads and stores inside the gate: without it gcc 12 moves a load past WRPKRU.
inline void write_pkru(std::uint32_t value) { asm volatile("wrpkru" : : "a"(value), "c"(0), "d"(0) : "memory"); }

}  // namespace mpklink
