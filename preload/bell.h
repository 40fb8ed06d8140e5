// SPDX-License-Identifier: MIT
// Ringing a peer's bell: an eventfd whose description the peer shares, with its flags and its count.
#pragma once
#include <cstdint>

namespace mpklink {

// Whether a process could stop this one by a signal, whatever we do: the same user, in the same pid namespace.
bool could_stop_us(std::uint32_t uid, std::uint32_t pid);
// Never blocks, but where the peer is trusted and has made its bell blocking and full.
void ring_bell(int bell, bool trusted);
void bells_forked_child();

}  // namespace mpklink
