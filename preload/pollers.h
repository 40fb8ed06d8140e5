// SPDX-License-Identifier: MIT
// Things of this process that wait, each with a number peers know and a bell (an eventfd) peers hold a copy of.
#pragma once
#include <cstdint>

#include "shm/layout.h"

namespace mpklink {

constexpr std::uint32_t kNoPoller = ~0u;

// Numbers below kBitmapPollers are epoll sets', the others blocked threads'. kNoPoller: all taken.
std::uint32_t take_poller(bool epoll_set);
void give_poller(std::uint32_t id);
// The bell of a poller, made at first use. -1: no descriptor to be had.
int bell_of(std::uint32_t id);
void drain_bell(std::uint32_t id);  // never blocks

// Moves `fd` to a high number, close-on-exec, and hides it from the program (close and close_range leave it alone).
// The new number, or -1 with `fd` closed.
int hide_fd(int fd);
int dup_hidden(int fd);  // another hidden descriptor for the same file, or -1
void close_hidden(int fd);
// The program wants this very number: ours moves out of the way.
void make_way(int fd);

void pollers_forked_child();

}  // namespace mpklink
